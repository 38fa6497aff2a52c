//! Reading guest memory: what is read is right, nothing is allocated by reading, and vanishing memory is an error.
//! The "VMM" is the test itself. Needs root and Linux 6.7.
#![expect(unsafe_code, reason = "the mappings that play guest RAM")]
#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]
#![expect(clippy::single_range_in_vec_init, reason = "lists of runs, some with one")]

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use indexer::{
    memory::{MemoryError, RegionMemory, Walk},
    units::Hva,
    vm::descriptor::{Backing, ProcessId, Region},
    watch::{pagemap::Pagemap, process::identify},
};

const PAGE: usize = 4096;

fn me() -> ProcessId {
    identify(std::process::id()).unwrap()
}

fn memfd(pages: usize) -> File {
    // SAFETY: a new descriptor.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), 0)) };
    file.set_len((pages * PAGE) as u64).unwrap();
    file
}

/// A mapping, for the life of the test process.
fn map(pages: usize, flags: i32, file: Option<&File>, offset: usize) -> *mut u8 {
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: a new mapping.
    let address = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), pages * PAGE, access, flags, fd, offset.cast_signed() as i64)
    };
    assert_ne!(address, libc::MAP_FAILED);
    address.cast()
}

fn region(address: *mut u8, pages: usize, backing: Backing) -> Region {
    let (start, len) = (Hva(address as u64), (pages * PAGE) as u64);
    Region { name: "ram".into(), start, len, backing, mapping_page_size: PAGE as u64 }
}

fn shared(file: &File, pages: usize, offset: usize) -> Region {
    let address = map(pages, libc::MAP_SHARED, Some(file), offset);
    let found = file.metadata().unwrap();
    region(
        address,
        pages,
        Backing::SharedFile {
            device: found.dev(),
            inode: found.ino(),
            offset: offset as u64,
            path: "/memfd:ram (deleted)".into(),
            trackable: true,
        },
    )
}

fn put(region: &Region, page: usize, value: u8) {
    // SAFETY: inside the region's mapping.
    unsafe { (region.start.0 as *mut u8).add(page * PAGE).write_bytes(value, PAGE) };
}

fn data(
    memory: &RegionMemory,
    pages: std::ops::Range<u32>,
) -> Result<Vec<std::ops::Range<u32>>, MemoryError> {
    let mut out = Vec::new();
    memory.data(&Pagemap::open(me()).unwrap(), pages, &mut out)?;
    Ok(out)
}

fn punch(file: &File, page: usize, pages: usize) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a plain system call.
    let r = unsafe { libc::fallocate(file.as_raw_fd(), mode, (page * PAGE) as i64, (pages * PAGE) as i64) };
    assert_eq!(r, 0);
}

/// The first byte of each page, after asserting that the page is full of it.
fn look(memory: &RegionMemory, pages: std::ops::Range<u32>) -> Result<Vec<u8>, MemoryError> {
    memory.with_pages(pages, &mut Vec::new(), |pages| {
        pages
            .iter()
            .map(|page| {
                assert!(page.iter().all(|byte| *byte == page[0]));
                page[0]
            })
            .collect()
    })
}

#[test]
fn a_ram_file_is_seen_in_place_and_by_copy() {
    let file = memfd(20);
    // A region that begins inside the file.
    let region = shared(&file, 16, 4 * PAGE);
    for page in [0, 3, 4, 15] {
        put(&region, page, page as u8 + 1);
    }
    let memory = RegionMemory::open(me(), &region).unwrap();
    assert!(memory.in_place());
    assert_eq!(data(&memory, 0..16).unwrap(), [0..1, 3..5, 15..16]);
    assert_eq!(data(&memory, 1..4).unwrap(), [3..4]);
    assert!(data(&memory, 5..15).unwrap().is_empty());
    assert_eq!(look(&memory, 3..5).unwrap(), [4, 5]);
    let mut copy = vec![9; 2 * PAGE];
    memory.read(14..16, &mut copy).unwrap();
    assert!(copy[..PAGE].iter().all(|b| *b == 0) && copy[PAGE..].iter().all(|b| *b == 16));
    assert!(memory.read(0..1, &mut copy).is_err(), "wrong length");
    assert!(memory.read(15..17, &mut copy).is_err(), "outside");
}

#[test]
fn a_walk_finds_what_looking_piece_by_piece_finds() {
    let file = memfd(300);
    // A region that begins and ends inside the file, of which some pages are mapped and most are not.
    let region = shared(&file, 256, 8 * PAGE);
    let bytes = [5; PAGE];
    for page in (0..300u64).filter(|page| page % 7 < 4 || (100..180).contains(page)) {
        FileExt::write_all_at(&file, &bytes, page * PAGE as u64).unwrap();
    }
    [3, 120, 121, 255].iter().for_each(|page| put(&region, *page, 1));
    let memory = RegionMemory::open(me(), &region).unwrap();
    let pagemap = Pagemap::open(me()).unwrap();
    for window in [1, 5, 16, 64, 256] {
        let (mut walk, mut found) = (Walk::default(), Vec::new());
        for first in (0..256u32).step_by(window as usize) {
            let mut out = Vec::new();
            let pages = first..(first + window).min(256);
            memory.data_along(&pagemap, pages.clone(), &mut walk, &mut out).unwrap();
            assert_eq!(out, data(&memory, pages).unwrap(), "window {window} at {first}");
            found.extend(out.into_iter().flatten());
        }
        assert_eq!(found, data(&memory, 0..256).unwrap().into_iter().flatten().collect::<Vec<_>>());
    }
}

#[test]
fn reading_allocates_nothing() {
    let file = memfd(4096);
    let region = shared(&file, 4096, 0);
    for page in (0..4096).step_by(37) {
        put(&region, page, 1);
    }
    let memory = RegionMemory::open(me(), &region).unwrap();
    let before = file.metadata().unwrap().blocks();
    let runs = data(&memory, 0..4096).unwrap();
    assert_eq!(runs.len(), 111);
    for run in runs {
        look(&memory, run).unwrap();
    }
    memory.read(0..4096, &mut vec![0; 4096 * PAGE]).unwrap();
    // Everything at once, holes and all.
    let seen = look(&memory, 0..4096).unwrap();
    assert!(seen.iter().enumerate().all(|(page, value)| *value == u8::from(page % 37 == 0)));
    assert_eq!(file.metadata().unwrap().blocks(), before);
}

#[test]
fn a_hole_punched_after_asking_stays_a_hole() {
    let file = memfd(64);
    let region = shared(&file, 64, 0);
    (0..64).for_each(|page| put(&region, page, 7));
    let memory = RegionMemory::open(me(), &region).unwrap();
    assert_eq!(data(&memory, 0..64).unwrap(), [0..64]);
    punch(&file, 10, 3);
    let before = file.metadata().unwrap().blocks();
    let seen = look(&memory, 0..64).unwrap();
    assert!(
        seen.iter().enumerate().all(|(page, value)| *value == if (10..13).contains(&page) { 0 } else { 7 })
    );
    memory.read(0..64, &mut vec![0; 64 * PAGE]).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), before);
}

#[test]
fn a_balloon_at_work_neither_crashes_nor_is_undone() {
    let file = memfd(2048);
    let region = shared(&file, 2048, 0);
    let memory = RegionMemory::open(me(), &region).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 1;
            while !done.load(Relaxed) {
                at = (at * 1103 + 12345) % 2040;
                (at..at + 8).for_each(|page| put(&region, page, 5));
                punch(&file, at, 8);
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(700) {
            memory
                .with_pages(0..2048, &mut Vec::new(), |pages| {
                    assert!(pages.iter().flatten().all(|byte| matches!(byte, 0 | 5)));
                })
                .unwrap();
        }
        done.store(true, Relaxed);
    });
    punch(&file, 0, 2048);
    look(&memory, 0..2048).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
}

#[test]
fn a_truncated_file_has_vanished() {
    let file = memfd(64);
    let region = shared(&file, 64, 0);
    (0..64).for_each(|page| put(&region, page, 7));
    let memory = RegionMemory::open(me(), &region).unwrap();
    // Under the reader's eyes.
    let result = memory.with_pages(0..64, &mut Vec::new(), |pages| {
        assert_eq!(pages[63][0], 7);
        file.set_len(32 * PAGE as u64).unwrap();
        pages.iter().map(|page| page[0]).collect::<Vec<_>>()
    });
    assert!(matches!(result, Err(MemoryError::Vanished)), "{result:?}");
    assert!(matches!(look(&memory, 32..64), Err(MemoryError::Vanished)));
    assert!(matches!(memory.read(63..64, &mut [0; PAGE]), Err(MemoryError::Vanished)));
    assert!(matches!(data(&memory, 0..64), Err(MemoryError::Vanished)));
    // The rest is still there.
    assert_eq!(look(&memory, 0..32).unwrap(), [7; 32]);
}

#[test]
fn a_file_truncated_again_and_again_never_crashes() {
    let file = memfd(256);
    let region = shared(&file, 256, 0);
    let memory = RegionMemory::open(me(), &region).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                file.write_all_at(&vec![3; 256 * PAGE], 0).unwrap();
                file.set_len(PAGE as u64).unwrap();
                file.set_len(256 * PAGE as u64).unwrap();
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let begun = Instant::now();
                    let (mut good, mut vanished) = (0, 0);
                    while begun.elapsed() < Duration::from_millis(700) {
                        let seen = memory.with_pages(0..256, &mut Vec::new(), |pages| {
                            assert!(pages.iter().flatten().all(|byte| matches!(byte, 0 | 3)));
                        });
                        match seen {
                            Ok(()) => good += 1,
                            Err(MemoryError::Vanished) => vanished += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                    println!("{good} good, {vanished} vanished");
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        done.store(true, Relaxed);
    });
}

#[test]
fn another_file_in_its_place_is_not_read() {
    let file = memfd(4);
    let mut region = shared(&file, 4, 0);
    if let Backing::SharedFile { inode, .. } = &mut region.backing {
        *inode += 1_000_000;
    }
    assert!(matches!(RegionMemory::open(me(), &region), Err(MemoryError::Vanished)));
}

#[test]
fn anonymous_memory_is_read_where_it_is_populated() {
    let address = map(64, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None, 0);
    let region = region(address, 64, Backing::Anonymous);
    for page in [2, 3, 40] {
        put(&region, page, 8);
    }
    let memory = RegionMemory::open(me(), &region).unwrap();
    assert!(!memory.in_place());
    assert_eq!(data(&memory, 0..64).unwrap(), [2..4, 40..41]);
    assert_eq!(look(&memory, 2..4).unwrap(), [8, 8]);
    // SAFETY: the mapping of this test.
    unsafe { libc::munmap(address.add(3 * PAGE).cast(), PAGE) };
    assert!(matches!(look(&memory, 2..4), Err(MemoryError::Vanished)));
    assert!(matches!(look(&memory, 3..4), Err(MemoryError::Vanished)));
    assert_eq!(look(&memory, 2..3).unwrap(), [8]);
}

#[test]
fn a_private_mapping_shows_the_file_below() {
    let file = memfd(16);
    file.write_all_at(&[4; PAGE], 5 * PAGE as u64).unwrap();
    let address = map(16, libc::MAP_PRIVATE, Some(&file), 0);
    let region = region(address, 16, Backing::PrivateFile { path: "/memfd:ram (deleted)".into() });
    put(&region, 9, 6);
    let memory = RegionMemory::open(me(), &region).unwrap();
    // Page 5 is in no page table, and yet it isn't zero.
    assert_eq!(data(&memory, 0..16).unwrap(), [5..6, 9..10]);
    assert_eq!(look(&memory, 5..6).unwrap(), [4]);
    assert_eq!(look(&memory, 9..10).unwrap(), [6]);
}

#[test]
fn the_memory_of_an_ended_process_is_gone() {
    let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let id = identify(child.id()).unwrap();
    let region = region(std::ptr::without_provenance_mut(0x10000), 1, Backing::Anonymous);
    let memory = RegionMemory::open(id, &region).unwrap();
    assert!(matches!(memory.read(0..1, &mut [0; PAGE]), Err(MemoryError::Vanished)));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(memory.read(0..1, &mut [0; PAGE]), Err(MemoryError::Gone)));
    assert!(matches!(RegionMemory::open(id, &region), Err(MemoryError::Gone)));
}

#[test]
fn huge_pages_are_read_without_allocating() {
    const HUGE: usize = 2 << 20;
    // SAFETY: a new descriptor.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB) };
    if fd < 0 {
        return; // a kernel without hugetlbfs
    }
    // SAFETY: the descriptor just made.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(2 * HUGE as u64).unwrap();
    let pool = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(pool).unwrap();
    std::fs::write(pool, "4").unwrap();
    let region = shared(&file, 2 * HUGE / PAGE, 0);
    put(&region, 1, 3);
    let memory = RegionMemory::open(me(), &region).unwrap();
    assert!(!memory.in_place());
    assert!(data(&memory, 0..1024).unwrap().contains(&(0..1024)));
    let blocks = file.metadata().unwrap().blocks();
    let mut copy = vec![1; 2 * HUGE];
    memory.read(0..1024, &mut copy).unwrap();
    assert!(copy.iter().enumerate().all(|(at, byte)| *byte == if at / PAGE == 1 { 3 } else { 0 }));
    assert_eq!(file.metadata().unwrap().blocks(), blocks);
    drop(file);
    // SAFETY: the mapping of this test.
    unsafe { libc::munmap(region.start.0 as *mut libc::c_void, 2 * HUGE) };
    drop(memory);
    std::fs::write(pool, before).unwrap();
}
