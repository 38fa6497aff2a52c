//! What was watched becomes something else: mappings are replaced, processes end, fork, or run another program.
#![expect(unsafe_code, reason = "plain system calls of the victims, on mappings of the test")]

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use indexer::watch::{
    pagemap::{Pagemap, PopulatedRun, ScanError},
    process::identify,
    userfault::{self, ArmError, Origin, UserFault},
};

use crate::{
    ram::{PAGE, Ram, steps},
    victim::{Shared, Victim},
};

#[test]
fn a_mapping_that_was_replaced_is_not_watched() {
    let ram = Ram::memfd(64);
    let watched = steps(
        ram,
        &[&|_| ram.write(0..64), &|_| {
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // One page in the middle.
            // SAFETY: the page is of the test's mapping, and nobody holds a reference into it.
            unsafe { libc::mmap(ram.page(30).cast(), PAGE, access, flags, -1, 0) };
        }],
    );
    watched.step();
    watched.arm(0..64);
    assert!(!watched.refuses());
    watched.step();
    assert!(watched.refuses());
    assert!(matches!(watched.userfault.arm(ram.range()), Err(ArmError::NotWatchable(..))));
    // Registered again, all is well.
    watched.userfault.register(ram.range()).unwrap();
    assert!(!watched.refuses());
    watched.victim.finish_well();
}

#[test]
fn an_unmapped_region_is_not_watched() {
    let ram = Ram::memfd(64);
    let watched = steps(
        ram,
        &[&|_| ram.write(0..64), &|_| {
            // SAFETY: as above; nothing of it is used afterwards.
            let _ = unsafe { libc::munmap(ram.address.cast(), ram.pages * PAGE) };
        }],
    );
    watched.step();
    watched.arm(0..64);
    watched.step();
    // No mapping is there to raise an error in the scan itself.
    assert!(watched.refuses());
    assert!(matches!(watched.userfault.register(ram.range()), Err(ArmError::NotWatchable(..))));
    watched.victim.finish_well();
}

#[test]
fn a_process_that_ends_or_becomes_another_program_is_not_scanned() {
    let ram = Ram::memfd(64);
    let mut watched = steps(ram, &[&|_| ram.write(0..64)]);
    watched.step();
    watched.victim.kill();
    let mut out = Vec::new();
    assert!(matches!(watched.pagemap.written(ram.range(), &mut out), Err(ScanError::Gone)));
    assert!(matches!(watched.pagemap.populated(ram.range(), false, &mut Vec::new()), Err(ScanError::Gone)));
    assert!(matches!(watched.userfault.arm(ram.range()), Err(ArmError::Gone)));
    assert!(watched.userfault.register(ram.range()).is_err());

    // SAFETY: ends with a null pointer, and all strings are constants.
    let exec = |_: &Shared| unsafe {
        let arguments = [c"sleep".as_ptr(), c"100".as_ptr(), std::ptr::null()];
        libc::execv(c"/bin/sleep".as_ptr(), arguments.as_ptr());
    };
    let watched = steps(ram, &[&|_| ram.write(0..64), &exec]);
    watched.step();
    assert_eq!(watched.written(), [0..64]);
    watched.victim.shared.asked.fetch_add(1, SeqCst);
    while std::fs::read_to_string(format!("/proc/{}/comm", watched.victim.pid)).unwrap() != "sleep\n" {
        std::thread::yield_now();
    }
    // Which error depends on the kernel: newer ones say that the address space is no more, older ones find it empty. And the newest give it back only
    // when execve(2) comes to its end, a moment after the new name shows.
    let began = Instant::now();
    while watched.pagemap.written(ram.range(), &mut Vec::new()).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "the old address space is still scanned");
        std::thread::yield_now();
    }
    assert!(watched.pagemap.populated(ram.range(), true, &mut Vec::new()).is_err());
}

#[test]
fn a_descriptor_inherited_by_fork_is_not_used() {
    let ram = Ram::memfd(64);
    let parent = Victim::spawn(|shared| {
        // The child is the process to watch; it has the parent's descriptor.
        shared.next();
        // SAFETY: the victim has one thread.
        let child = unsafe { libc::fork() };
        if child != 0 {
            shared.result.store(u64::from(child.cast_unsigned()), SeqCst);
            shared.next();
            // SAFETY: no memory is touched.
            unsafe { libc::kill(child, libc::SIGKILL) };
            return;
        }
        ram.write(0..64);
        shared.rounds.store(1, SeqCst);
        while !shared.finished() {
            // SAFETY: no memory is touched.
            unsafe { libc::usleep(100) };
        }
    });
    parent.ready();
    let parents = userfault::attach(parent.id()).unwrap();
    parents.register(ram.range()).unwrap();
    let origin = parents.report().origin;
    parent.step();
    parent.await_rounds(1);
    let child = identify(u32::try_from(parent.shared.result.load(SeqCst)).unwrap()).unwrap();
    let childs = userfault::attach(child).unwrap();
    childs.register(ram.range()).unwrap();
    assert_eq!((origin, childs.report().origin), (Origin::Injected, Origin::Injected));
    childs.arm(ram.range()).unwrap();
    let mut runs = Vec::new();
    Pagemap::open(child).unwrap().populated(ram.range(), true, &mut runs).unwrap();
    assert_eq!(runs, [PopulatedRun { range: ram.range(), armed: true }]);
    // The next daemon finds the right one among the two, and what it has armed.
    let token = childs.token().unwrap();
    drop(childs);
    let again = userfault::reattach(child, token).unwrap().unwrap();
    assert_eq!((again.report().origin, again.token()), (Origin::Reused, Some(token)));
    again.register(ram.range()).unwrap();
    let mut runs = Vec::new();
    Pagemap::open(child).unwrap().populated(ram.range(), true, &mut runs).unwrap();
    assert_eq!(runs, [PopulatedRun { range: ram.range(), armed: true }]);
    // (The parent's is found too, by its own name; but a name is written down only of one that has shown by its effect whose it is.)
    assert_ne!(parents.token(), Some(token));
    // One that does not go on with it takes the other's place, and its name away.
    drop(again);
    let other = userfault::attach(child).unwrap();
    other.register(ram.range()).unwrap();
    other.arm(ram.range()).unwrap();
    assert_eq!(other.report().origin, Origin::Injected);
    assert_ne!(other.token(), Some(token));
    assert!(userfault::reattach(child, token).unwrap().is_none());
    parents.arm(ram.range()).unwrap();
    parent.finish();
}

#[test]
fn a_userfaultfd_that_is_handed_over_is_taken_as_it_is() {
    use std::os::fd::{FromRawFd, OwnedFd};
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | 1;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let own = || unsafe {
        OwnedFd::from_raw_fd(i32::try_from(libc::syscall(libc::SYS_userfaultfd, flags)).unwrap())
    };
    let ram = Ram::memfd(4);
    UserFault::from_fd(own()).unwrap().register(ram.range()).unwrap();
    let other: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    assert!(UserFault::from_fd(other).is_err());
}
