//! Registering, arming and scanning find every write, and doubt is an error.
#![expect(unsafe_code, reason = "plain system calls of the victims, on mappings of the test")]

use std::sync::atomic::Ordering::SeqCst;

use indexer::watch::{
    pagemap::{Pagemap, PopulatedRun, ScanError},
    userfault,
};

use crate::{
    ram::{PAGE, Ram, steps},
    victim::{Victim, map},
};

fn finds_writes(ram: Ram) {
    // SAFETY: the name is a constant.
    let zero = unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY) };
    let watched = steps(
        ram,
        &[
            &|_| ram.write(0..64),
            &|_| ram.write(5..7),
            // The kernel writes: no fault in user mode.
            // SAFETY: the page is of the mapping, and longer than what is read.
            &|shared| shared.check(unsafe { libc::read(zero, ram.page(9).cast(), 100) } == 100, 1),
            &|_| ram.write(100..101),
            // Reading is not writing.
            // SAFETY: the page is of the mapping.
            &|_| (0..64).for_each(|page| assert!(unsafe { ram.page(page).read_volatile() } < 2)),
            &|_| ram.write(63..65),
        ],
    );
    assert!(watched.written().is_empty(), "never populated");
    watched.step();
    assert_eq!(watched.written(), [0..64]);
    watched.arm(0..64);
    assert!(watched.written().is_empty());
    assert_eq!(watched.populated(), [(0..64, true)]);
    watched.step();
    assert_eq!(watched.written(), [5..7]);
    assert_eq!(watched.populated(), [(0..5, true), (5..7, false), (7..64, true)]);
    watched.step();
    assert_eq!(watched.written(), [5..7, 9..10]);
    assert_eq!(watched.written(), [5..7, 9..10], "looking changes nothing");
    watched.step();
    assert_eq!(watched.written(), [5..7, 9..10, 100..101]);
    watched.arm(5..7);
    watched.step();
    assert_eq!(watched.written(), [9..10, 100..101]);
    watched.step();
    assert_eq!(watched.written(), [9..10, 63..65, 100..101]);
    // A part of the range only.
    let mut out = Vec::new();
    watched.pagemap.written(ram.part(10..64), &mut out).unwrap();
    assert_eq!(ram.pages_of(&out), [63..64]);
    watched.pagemap.written(ram.part(10..10), &mut out).unwrap();
    assert_eq!(out.len(), 1, "an empty range has nothing");
    watched.victim.finish_well();
}

#[test]
fn writes_to_a_memfd_are_found() {
    finds_writes(Ram::memfd(256));
}

#[test]
fn writes_to_anonymous_memory_are_found() {
    finds_writes(Ram::anonymous(256));
}

#[test]
fn before_attaching_populated_pages_are_found_and_not_armed() {
    let ram = Ram::memfd(64);
    let victim = Victim::spawn(|shared| {
        ram.write(3..5);
        shared.next();
    });
    victim.ready();
    let pagemap = Pagemap::open(victim.id()).unwrap();
    let mut runs = Vec::new();
    pagemap.populated(ram.range(), false, &mut runs).unwrap();
    assert_eq!(runs, [PopulatedRun { range: ram.part(3..5), armed: false }]);
    runs.clear();
    assert!(matches!(pagemap.populated(ram.range(), true, &mut runs), Err(ScanError::NotWatched)));
    assert!(matches!(pagemap.written(ram.range(), &mut Vec::new()), Err(ScanError::NotWatched)));
}

#[test]
fn more_runs_than_one_call_returns() {
    let ram = Ram::memfd(8192);
    let watched = steps(
        ram,
        &[
            &|_| (0..8192).step_by(2).for_each(|page| ram.write(page..page + 1)),
            &|_| ram.write(0..8192),
            &|_| (0..8192).step_by(3).for_each(|page| ram.write(page..page + 1)),
        ],
    );
    watched.step();
    let expected: Vec<_> = (0..8192).step_by(2).map(|page| page..page + 1).collect();
    assert_eq!(watched.written(), expected);
    watched.step();
    assert_eq!(watched.written(), [0..8192], "runs are joined across calls");
    watched.arm(0..8192);
    watched.step();
    let expected: Vec<_> = (0..8192).step_by(3).map(|page| page..page + 1).collect();
    assert_eq!(watched.written(), expected);
    let armed: usize = watched.populated().iter().filter(|run| run.1).map(|run| run.0.len()).sum();
    assert_eq!(armed, 8192 - expected.len());
    watched.victim.finish_well();
}

#[test]
fn discarded_anonymous_memory_is_no_longer_populated() {
    let ram = Ram::anonymous(64);
    let watched = steps(
        ram,
        &[
            &|_| ram.write(0..64),
            &|_| {
                // SAFETY: the page is of the mapping, and nobody holds a reference into it.
                let _ = unsafe { libc::madvise(ram.page(8).cast(), PAGE, libc::MADV_DONTNEED) };
            },
            &|_| {
                // SAFETY: the page is of the mapping.
                let _ = unsafe { ram.page(8).read_volatile() };
            },
        ],
    );
    watched.step();
    watched.arm(0..64);
    watched.step();
    assert_eq!(watched.populated(), [(0..8, true), (9..64, true)]);
    watched.step();
    assert_eq!(watched.written(), [8..9], "it appears as written");
    watched.victim.finish_well();
}

#[test]
fn no_write_of_a_busy_writer_is_lost() {
    // The writer counts up in random pages. Arm, read, look again: a page that is still armed has the value that was read.
    let ram = Ram::memfd(512);
    let writer = Victim::spawn(|shared| {
        let mut state = 1_u64;
        let mut n = 0_u64;
        while !shared.finished() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            n += 1;
            let page = (state >> 33) as usize % 512;
            // SAFETY: the page is of the mapping, aligned, and read by others with volatile reads only.
            unsafe { ram.page(page).cast::<u64>().write_volatile(n) };
            if n.is_multiple_of(64) {
                // SAFETY: no memory is touched.
                unsafe { libc::usleep(50) };
            }
            shared.rounds.fetch_add(1, SeqCst);
        }
    });
    writer.await_rounds(1000);
    let pagemap = Pagemap::open(writer.id()).unwrap();
    let userfault = userfault::attach(writer.id()).unwrap();
    userfault.register(ram.range()).unwrap();
    let read = || -> Vec<u64> {
        // SAFETY: as where it is written.
        (0..512).map(|page| unsafe { ram.page(page).cast::<u64>().read_volatile() }).collect()
    };
    let mut quiet = 0;
    let mut known: Vec<Option<u64>> = vec![None; 512];
    for _ in 0..300 {
        let mut written = Vec::new();
        pagemap.written(ram.range(), &mut written).unwrap();
        for range in &written {
            userfault.arm(range.clone()).unwrap();
        }
        for range in ram.pages_of(&written) {
            for page in range {
                // SAFETY: as where it is written.
                known[page] = Some(unsafe { ram.page(page).cast::<u64>().read_volatile() });
            }
        }
        // Values first, marks afterwards: what is unmarked now was not written when it was read.
        let values = read();
        let mut dirty = Vec::new();
        pagemap.written(ram.range(), &mut dirty).unwrap();
        let dirty: Vec<usize> = ram.pages_of(&dirty).into_iter().flatten().collect();
        for (page, value) in values.iter().enumerate() {
            if let Some(known) = known[page]
                && !dirty.contains(&page)
            {
                assert_eq!(*value, known, "page {page} changed without a mark");
                quiet += 1;
            }
        }
    }
    assert!(quiet > 1000);
    writer.finish_well();
}

#[test]
fn a_huge_page_is_tracked_by_its_small_ones() {
    const HUGE: usize = 512;
    let ram = Ram::anonymous(4 * HUGE);
    // SAFETY: advice on the whole mapping; no content changes.
    unsafe { libc::madvise(ram.address.cast(), ram.pages * PAGE, libc::MADV_HUGEPAGE) };
    let first = (ram.address as usize).next_multiple_of(HUGE * PAGE) / PAGE - ram.address as usize / PAGE;
    let watched = steps(ram, &[&|_| ram.write(0..4 * HUGE), &|_| ram.write(first + 7..first + 9)]);
    watched.step();
    let smaps = std::fs::read_to_string(watched.victim.process().path("smaps_rollup")).unwrap();
    println!("{}", smaps.lines().find(|line| line.starts_with("AnonHugePages")).unwrap());
    assert_eq!(watched.written(), [0..4 * HUGE]);
    watched.arm(0..4 * HUGE);
    assert!(watched.written().is_empty());
    watched.step();
    assert_eq!(watched.written(), [first + 7..first + 9]);
    // Part of a huge page, armed by itself.
    watched.arm(first + 8..first + 9);
    assert_eq!(watched.written(), [first + 7..first + 8]);
    watched.victim.finish_well();
}

#[test]
fn unregistering_ends_the_watch() {
    let ram = Ram::memfd(8);
    let watched = steps(ram, &[&|_| ram.write(0..8), &|_| ram.write(0..8)]);
    watched.step();
    watched.arm(0..8);
    watched.userfault.unregister(ram.range()).unwrap();
    assert!(watched.refuses());
    watched.step();
    watched.victim.finish_well();
}

#[test]
fn writes_to_a_file_on_disk_are_found() {
    let file = tempfile::tempfile_in("/var/tmp").unwrap();
    file.set_len(256 * PAGE as u64).unwrap();
    let address = map(256 * PAGE, libc::MAP_SHARED, std::os::fd::AsRawFd::as_raw_fd(&file));
    finds_writes(Ram { address, pages: 256 });
}

#[test]
fn this_kernel_can() {
    Pagemap::probe().unwrap();
    userfault::probe().unwrap();
}
