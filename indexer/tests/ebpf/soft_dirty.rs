//! Where soft-dirty bits are the witness: marks and bits name the same pages, whoever writes them.

use std::{fs, os::unix::fs::FileExt as _};

use indexer::{
    units::Hva,
    watch::{pagemap::Pagemap, process::identify},
};

use crate::{
    hooks, layout_with_slots, take,
    vmm::{GUEST_WRITES, Vmm},
};

/// Where the guest's memory begins in the VMM's.
const FIRST: u32 = 64;

/// For every subset of the pages a guest writes: some are written by the VMM, some by somebody else through `/proc/PID/mem`, and these are
/// the ones that are marked and have a bit. Then the guest writes all of them, which it has written before: every one takes a fault again,
/// so clearing has been made known to KVM.
#[test]
#[ignore = "needs a kernel without PAGEMAP_SCAN: `cargo xtask vm-test 6.1` runs it"]
fn the_marks_and_the_soft_dirty_bits_name_the_same_pages() {
    let mut vmm = Vmm::start(256);
    vmm.tell("kvm 0");
    vmm.tell(&format!("slot 3 0 {FIRST} 64"));
    for page in FIRST..FIRST + 64 {
        vmm.tell(&format!("write {page}"));
    }
    vmm.tell(&format!("code {FIRST}"));
    vmm.tell("run");

    let written = FIRST + GUEST_WRITES.start..FIRST + GUEST_WRITES.end;
    let ram = vmm.ram.address;
    let at = |page: u32| Hva(ram + u64::from(page) * 4096);
    let range = at(written.start)..at(written.end);
    let bit = |page: u32| 1_u8 << (page - written.start);
    let pagemap = Pagemap::open(identify(vmm.pid()).unwrap()).unwrap();
    let bits = || {
        let mut runs = Vec::new();
        pagemap.written(range.clone(), &mut runs).unwrap();
        let has = |page: &u32| runs.iter().any(|run| run.start <= at(*page) && at(*page) < run.end);
        written.clone().filter(has).fold(0, |set, page| set | bit(page))
    };
    let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", vmm.pid())).unwrap();
    let clear_refs = format!("/proc/{}/clear_refs", vmm.pid());
    let mut marks = hooks().track(vmm.pid(), &layout_with_slots(&vmm)).unwrap();
    let mut marked = || {
        let pages = take(&mut marks).written.into_iter().flatten().filter(|page| written.contains(page));
        pages.fold(0, |set, page| set | bit(page))
    };
    let (mut by_mark, mut by_bit) = (0, 0);
    for set in 0..=u8::MAX {
        fs::write(&clear_refs, "4").unwrap();
        let _ = marked();
        assert_eq!(bits(), 0, "everything is armed");
        for page in written.clone().filter(|page| set & bit(*page) != 0) {
            if page % 2 == 0 {
                vmm.tell(&format!("write {page}"));
            } else {
                memory.write_all_at(b"from outside", at(page).0 + 8).unwrap();
            }
        }
        assert_eq!((marked(), bits()), (set, set), "marked, and with a bit");
        vmm.tell("run");
        let (by_guest, now) = (marked(), bits());
        assert_eq!((by_guest | set, now), (u8::MAX, u8::MAX), "the guest's writes");
        by_mark += (by_guest | set).count_ones();
        by_bit += now.count_ones();
    }
    println!("kernel-fact: pages marked / with a soft-dirty bit = {by_mark} / {by_bit}");
}
