use super::*;
use crate::{
    units::Gpa,
    vm::{
        files::FileFacts,
        maps::{self, Vma},
        spans::spans,
    },
};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// Everything is on tmpfs, except below /disk (a disk) and /huge (hugetlbfs with 2 MiB pages).
fn facts(vma: &Vma) -> FileFacts {
    let (storage, page_size) = match &vma.path {
        path if path.starts_with(b"/disk/") || path.starts_with(b"/usr/") => (Storage::Other, 4096),
        path if path.starts_with(b"/huge/") => (Storage::HugePages, HUGE_PAGE),
        _ => (Storage::Memory, 4096),
    };
    FileFacts { device: vma.file.device, inode: vma.file.inode, storage, page_size }
}

fn qemu(words: &str, maps: &str, slots: &[Memslot]) -> Found {
    let cmdline = format!("qemu-system-x86_64 {words}").replace(' ', "\0") + "\0";
    of_qemu(&Options::parse(cmdline.as_bytes()), &spans(&maps::parse(maps.as_bytes()), facts), slots)
}

fn kvm(maps: &str, slots: Option<&[Memslot]>) -> Found {
    of_kvm(&spans(&maps::parse(maps.as_bytes()), facts), slots)
}

fn slot(gpa: u64, hva: u64, len: u64) -> Memslot {
    Memslot { id: 0, gpa: Gpa(gpa), len, hva: Hva(hva), flags: 0 }
}

fn names(found: &Found) -> Vec<&str> {
    found.regions.iter().map(|region| region.name.as_str()).collect()
}

fn places(found: &Found) -> Vec<(u64, u64)> {
    found.regions.iter().map(|region| (region.start.0, region.len)).collect()
}

#[test]
fn main_memory_comes_first_wherever_it_is_mapped() {
    let found = qemu(
        "-object memory-backend-file,id=b,size=16M,mem-path=/dev/shm/b,share=on -object memory-backend-memfd,id=a,size=32M -machine q35,memory-backend=a",
        "10000000-11000000 rw-s 0 0:1b 2 /dev/shm/b (deleted)\n\
         20000000-22000000 rw-s 0 0:1 9 /memfd:memory-backend-memfd (deleted)\n\
         30000000-30200000 rw-s 0 0:1b 3 /dev/shm/hotplug\n",
        &[],
    );
    assert_eq!(names(&found), ["memfd:memory-backend-memfd", "/dev/shm/b", "/dev/shm/hotplug"]);
    assert!(!found.incomplete && found.doubts.is_empty());
    assert_eq!(found.files.len(), 3);
}

#[test]
fn plain_memory_is_the_guarded_mapping_of_exactly_its_size() {
    let maps = "7f0000000000-7f0000800000 rw-p 0 0:0 0\n\
                7f0001000000-7f0001001000 ---p 0 0:0 0\n\
                7f0001001000-7f0005001000 rw-p 0 0:0 0\n\
                7f0010000000-7f0014000000 rw-p 0 0:0 0\n\
                7f0014000000-7f0014001000 ---p 0 0:0 0\n\
                7f0020000000-7f0024000000 rwxp 0 0:0 0\n";
    let found = qemu("-m 64", maps, &[]);
    assert_eq!(places(&found), [(0x7f00_1000_0000, 64 * MIB)]);
    assert_eq!(found.regions[0].backing, Backing::Anonymous);
    // Memory slots know better than alignment.
    let found = qemu("-m 64", maps, &[slot(0, 0x7f00_0100_1000, 64 * MIB)]);
    assert_eq!(places(&found), [(0x7f00_0100_1000, 64 * MIB)]);
    assert!(qemu("-m 63", maps, &[]).incomplete);
}

#[test]
fn a_ram_file_in_a_second_place_is_in_doubt() {
    let doubts = |more: &str| {
        let maps = format!(
            "10000000-11000000 rw-s 0 0:1b 2 /dev/shm/a\n11000000-11800000 rw-s 1000000 0:1b 2 /dev/shm/a\n{more}"
        );
        let spans = spans(&maps::parse(maps.as_bytes()), facts);
        let regions = of_kvm(&spans, Some(&[slot(0, 0x1000_0000, 16 * MIB)])).regions;
        mapped_elsewhere(&spans, &regions)
    };
    assert_eq!(doubts(""), Vec::<String>::new());
    assert_eq!(doubts("20000000-21000000 r--s 0 0:1b 2 /dev/shm/a\n"), Vec::<String>::new(), "it only looks");
    assert_eq!(doubts("20000000-21000000 rw-p 0 0:1b 2 /dev/shm/a\n"), Vec::<String>::new(), "a copy");
    assert_eq!(
        doubts("20000000-21000000 rw-s 2000000 0:1b 2 /dev/shm/a\n"),
        Vec::<String>::new(),
        "other pages"
    );
    assert_eq!(doubts("20000000-21000000 rw-s 0 0:1b 3 /dev/shm/b\n"), Vec::<String>::new(), "another file");
    let doubt = doubts("20000000-20001000 rw-s 17ff000 0:1b 2 /dev/shm/a\n");
    assert!(doubt.len() == 1 && doubt[0].contains("/dev/shm/a"), "its last page: {doubt:?}");
}

#[test]
fn memory_split_by_a_userfaultfd_is_one_region() {
    let found = qemu(
        "-m 64",
        "7f0010000000-7f0010200000 rw-p 0 0:0 0\n7f0010200000-7f0014000000 rw-p 0 0:0 0\n7f0014000000-7f0014001000 ---p 0 0:0 0\n",
        &[],
    );
    assert_eq!(places(&found), [(0x7f00_1000_0000, 64 * MIB)]);
}

#[test]
fn what_is_not_ram_is_left_out() {
    let found = qemu(
        "-m 64 -object memory-backend-file,id=iv,size=4M,share=on,mem-path=/dev/shm/iv -device ivshmem-plain,memdev=iv",
        "10000000-14000000 rw-p 0 0:0 0\n14000000-14001000 ---p 0 0:0 0\n\
         20000000-20400000 rw-s 0 0:1b 2 /dev/shm/iv\n\
         21000000-22000000 rw-s 0 0:1 3 /memfd:vhost-log (deleted)\n\
         23000000-24000000 rw-s 0 0:1 4 /memfd:tcg-jit (deleted)\n\
         25000000-26000000 rw-s 0 0:1 5 /i915 (deleted)\n\
         27000000-28000000 rw-s 0 0:10 6 /disk/dri\n\
         28000000-28000400 rw-s 0 0:1b 7 /dev/shm/small\n\
         29000000-2a000000 rw-p 0 0:0 0\n2a000000-2a001000 ---p 0 0:0 0\n",
        &[slot(0, 0x1000_0000, 64 * MIB), slot(0xfd00_0000, 0x2900_0000, 16 * MIB)],
    );
    assert_eq!(places(&found), [(0x1000_0000, 64 * MIB)]);
}

#[test]
fn plugged_in_memory_is_found_without_the_command_line() {
    let maps = "10000000-14000000 rw-p 0 0:0 0\n14000000-14001000 ---p 0 0:0 0\n\
                20000000-22000000 rw-s 0 0:1 3 /memfd:memory-backend-memfd (deleted)\n\
                30000000-32000000 rw-s 0 0:1 4 /dev/zero (deleted)\n\
                40000000-42000000 rw-p 0 0:0 0\n42000000-42001000 ---p 0 0:0 0\n\
                50000000-52000000 rw-s 0 8:1 4 /disk/nvdimm\n";
    assert_eq!(
        names(&qemu("-m 64", maps, &[])),
        ["anonymous", "memfd:memory-backend-memfd", "shared anonymous"]
    );
    let slots = [
        slot(0, 0x1000_0000, 64 * MIB),
        slot(FOUR_GIB, 0x4000_0000, 32 * MIB),
        slot(8 * FOUR_GIB, 0x5000_0000, 32 * MIB),
    ];
    let found = qemu("-m 64", maps, &slots);
    assert_eq!(found.regions.len(), 5);
    assert!(found.doubts.iter().any(|doubt| doubt.contains("/disk/nvdimm")), "{:?}", found.doubts);
}

#[test]
fn a_folder_as_mem_path_and_huge_pages() {
    let found = qemu(
        "-m 64 -mem-path /huge",
        "10000000-14000000 rw-p 0 0:f 2 /huge/qemu_back_mem.pc.ram.OwVBPa (deleted)\n",
        &[],
    );
    assert_eq!(places(&found), [(0x1000_0000, 64 * MIB)]);
    assert!(matches!(found.regions[0].backing, Backing::PrivateFile { .. }));
    assert_eq!(found.regions[0].mapping_page_size, HUGE_PAGE);
}

#[test]
fn a_ram_file_on_a_disk_is_named_as_a_doubt() {
    let found = qemu(
        "-object memory-backend-file,id=m,size=64M,mem-path=/disk/ram,share=on -machine q35,memory-backend=m",
        "10000000-14000000 rw-s 0 8:1 2 /disk/ram\n",
        &[],
    );
    assert!(matches!(found.regions[0].backing, Backing::SharedFile { trackable: false, .. }));
    assert_eq!(found.doubts.len(), 1);
}

#[test]
fn of_other_vmms_the_memory_slots_say_what_is_ram() {
    let maps = "10000000-10100000 rw-s 0 0:1 3 /memfd:guest (deleted)\n\
                20000000-20800000 rw-p 0 0:0 0\n\
                30000000-30100000 rw-s 0 0:1 4 /memfd:rom (deleted)\n\
                40000000-40100000 rw-s 0 0:1 5 /memfd:other (deleted)\n";
    let rom = Memslot { flags: 2, ..slot(0xf_0000, 0x3000_0000, MIB) };
    let slots =
        [slot(0x20_0000, 0x1000_0000, MIB), slot(0, 0x2010_0000, MIB), slot(MIB, 0x2030_0000, MIB), rom];
    let found = kvm(maps, Some(&slots));
    assert_eq!(places(&found), [(0x2010_0000, 3 * MIB), (0x1000_0000, MIB)]);
    assert_eq!(found.regions[0].backing, Backing::Anonymous);
    assert!(found.doubts.is_empty());
}

#[test]
fn without_memory_slots_shared_memory_is_the_guess() {
    let maps = "10000000-10100000 rw-s 0 0:1 3 /memfd:guest (deleted)\n\
                20000000-20800000 rw-p 0 0:0 0\n\
                30000000-30001000 rw-s 0 0:1 4 /memfd:small (deleted)\n\
                40000000-40100000 rw-s 0 8:1 4 /disk/log\n";
    assert_eq!(names(&kvm(maps, None)), ["memfd:guest"]);
    let found = kvm("20000000-20800000 rw-p 0 0:0 0\n", None);
    assert!(found.regions.is_empty());
    assert_eq!(found.doubts.len(), 1);
}

#[test]
fn regions_keep_their_places() {
    let at = |name: &str, start: u64, inode: u64| Region {
        name: name.to_owned(),
        start: Hva(start),
        len: MIB,
        backing: Backing::SharedFile { device: 1, inode, offset: 0, path: "/x".into(), trackable: true },
        mapping_page_size: 4096,
    };
    let (a, b, c) = (at("a", 0x1000_0000, 1), at("b", 0x2000_0000, 2), at("c", 0x3000_0000, 3));
    let order = |found: &[&Region], before: &[&Region]| {
        let own = |regions: &[&Region]| regions.iter().map(|region| (*region).clone()).collect::<Vec<_>>();
        keep_order(own(found), &own(before)).into_iter().map(|region| region.name).collect::<String>()
    };
    assert_eq!(order(&[&c, &b, &a], &[&a, &b]), "abc");
    assert_eq!(order(&[&c, &b], &[&a, &b]), "bc");
    assert_eq!(order(&[&a], &[]), "a");
    // The same file somewhere else is the same region; another file in the same place is not.
    assert_eq!(order(&[&c, &at("A", 0x5000_0000, 1)], &[&a]), "Ac");
    assert_eq!(order(&[&c, &at("n", 0x1000_0000, 9)], &[&c, &a]), "cn");
}

#[test]
fn names_of_regions_do_not_disturb_a_terminal() {
    let found =
        kvm("10000000-10100000 rw-s 0 0:1 3 /dev/shm/\x1b[31m\\012x\n", Some(&[slot(0, 0x1000_0000, MIB)]));
    assert_eq!(names(&found), ["/dev/shm/_[31m_x"]);
}

proptest! {
    /// Whatever is mapped and whatever KVM says: regions are whole pages, inside mappings, and never overlap.
    #[test]
    fn regions_are_sane(
        pieces in proptest::collection::vec((0u64..64, 1u64..64, 0usize..6, 0u64..4), 0..24),
        slots in proptest::collection::vec((0u64..1 << 24, 0u64..2048, 0u64..256, 0u32..4), 0..24),
        words in proptest::sample::select(vec!["-m 1", "-m 2", "-object memory-backend-memfd,id=a,size=64k -machine q35,memory-backend=a", "-mem-path /huge -m 1"]),
    ) {
        let mut text = String::new();
        let mut at = 16u64;
        for (gap, pages, kind, inode) in pieces {
            at += gap / 32 * gap;
            let what = ["rw-p 0 0:0 0", "rw-s 0 0:1 {i} /memfd:memory-backend-memfd (deleted)", "rw-s 0 0:1 {i} /dev/shm/x", "rw-p 0 0:1 {i} /huge/qemu_back_mem.x", "---p 0 0:0 0", "rw-s 0 8:1 {i} /disk/x"][kind];
            text += &format!("{:x}-{:x} {}\n", at * 4096, (at + pages) * 4096, what.replace("{i}", &(inode + 1).to_string()));
            at += pages;
        }
        let slots: Vec<Memslot> = slots.into_iter().map(|(gpa, page, pages, flags)| Memslot { flags, ..slot(gpa << 12, page << 12, pages << 12) }).collect();
        let vmas = maps::parse(text.as_bytes());
        for found in [qemu(words, &text, &slots), kvm(&text, Some(&slots)), kvm(&text, None)] {
            let mut places = places(&found);
            places.sort_unstable();
            for pair in places.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            for (start, len) in places {
                prop_assert!(len > 0 && len % 4096 == 0 && start % 4096 == 0);
                for page in (start..start + len).step_by(4096) {
                    prop_assert!(vmas.iter().any(|vma| vma.access.write && vma.range.contains(&page)));
                }
            }
        }
    }
}
