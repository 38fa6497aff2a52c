//! Protects the promise that a VM whose RAM somebody else can write is read again: by `sync` while that goes on, and once more before
//! it is called exact again.
#![expect(unsafe_code, reason = "the test is the other process that maps the RAM file")]

use std::{fs::OpenOptions, time::Duration};

use memdex_tests::{Daemon, Scratch, Tiny, oracle, tiny, wait};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

const PAGE: usize = 4096;
const LEN: usize = 16 << 20;

#[test]
fn what_another_process_writes_is_found() {
    let scratch = Scratch::new("foreign");
    let path = scratch.shm("ram");
    let ram = tiny::Options { ram: tiny::Ram::File(path.clone()), ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("f"), &ram);
    guest.write(1, 2000, 7);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("before anybody else writes");

    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the RAM file");
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap(std::ptr::null_mut(), LEN, access, MapFlags::SHARED, &file, 0) }
        .expect("the RAM file can be mapped")
        .cast::<u8>();
    let write = |page: usize, byte: u8| {
        // SAFETY: within the mapping, which ends after the last call.
        unsafe { start.add(page * PAGE).write_volatile(byte) };
    };
    let tracking = |wanted: &str| {
        wait::until(wanted, Duration::from_secs(10), || {
            daemon.vm_of(guest.pid()).filter(|vm| vm.tracking == wanted)
        });
    };
    tracking("advisory");
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    let region = &vm.coverage[0];
    assert_eq!(region.status, "advisory", "{region:?}");
    assert!(region.reason.as_ref().is_some_and(
        |reason| reason.contains("maps this VM's RAM writable") || reason.contains("has just mapped")
    ));
    let diff = daemon.diff(&vm.id, &daemon.url());
    assert!(diff.coverage.iter().all(|region| region.status == "advisory"), "{diff:?}");
    assert!(!diff.advisory_reasons.is_empty(), "{diff:?}");
    let metrics = String::from_utf8_lossy(&daemon.get("/metrics").body).into_owned();
    let line =
        |line: &&str| line.starts_with("memdex_vm_region_pages{") && line.contains("status=\"advisory\"");
    assert!(metrics.lines().find(line).is_some_and(|line| line.ends_with(" 4096")), "{metrics}");
    // What is written from now on may go unnoticed until everything is read once more, and the VM says so.
    wait::until("the map to be called older", Duration::from_secs(5), || {
        daemon.vm_of(guest.pid()).filter(|vm| vm.staleness_ms >= 300)
    });
    write(100, 1);
    write(1500, 2);
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("after another process wrote");
    write(200, 3);
    // SAFETY: mapped above, and `write` is not called any more.
    unsafe { munmap(start.cast(), LEN) }.expect("what was mapped can be unmapped");
    tracking("exact");
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("after the other process left");
}

/// One that only looks at the RAM is no reason to doubt. It can be allowed to write without another mapping, which no hook sees.
#[test]
fn a_mapping_that_becomes_writable_is_found() {
    let scratch = Scratch::new("viewer");
    let path = scratch.shm("ram");
    let ram = tiny::Options { ram: tiny::Ram::File(path.clone()), ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("v"), &ram);
    guest.write(1, 2000, 7);
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the RAM file");
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap(std::ptr::null_mut(), LEN, ProtFlags::READ, MapFlags::SHARED, &file, 0) }
        .expect("the RAM file can be mapped");
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    daemon.sync(&vm.id);
    // Every process has been looked at by now.
    wait::pause(Duration::from_secs(12));
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!((vm.tracking.as_str(), vm.advisory_reasons.len()), ("exact", 0), "{vm:?}");

    // SAFETY: the mapping made above, as long as it is.
    unsafe { mprotect(start, LEN, MprotectFlags::READ | MprotectFlags::WRITE) }.expect("it may be written");
    // SAFETY: within the mapping, which may be written now.
    unsafe { start.cast::<u8>().add(300 * PAGE).write_volatile(9) };
    // A sweep, and what it takes to look at the processes there are; not the minute after which any process is looked at again.
    wait::until("the VM to be in doubt", Duration::from_secs(10), || {
        daemon.vm_of(guest.pid()).filter(|vm| vm.tracking == "advisory")
    });
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("after it wrote");
    // SAFETY: mapped above, and not used any more.
    unsafe { munmap(start, LEN) }.expect("what was mapped can be unmapped");
}
