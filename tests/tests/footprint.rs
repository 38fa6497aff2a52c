//! Protects the promise that looking does not make a guest's memory grow: pages that were never populated stay that way.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use memdex_tests::{Daemon, Scratch, Tiny, oracle, tiny};

const POPULATED: u64 = 700;

fn index_twice(scratch: &Scratch, ram: tiny::Ram, measure: impl Fn(u32) -> u64) -> (u64, u64) {
    let options = tiny::Options { mib: 64, ram, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(scratch, &scratch.name("f"), &options);
    for part in 0..7 {
        guest.write(1 + part * 2000, POPULATED / 7, 1 + part as u32 * 100);
    }
    let before = measure(guest.pid());
    let daemon = Daemon::start(scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    daemon.sync(&vm.id);
    daemon.verify(&vm.id);
    daemon.sync(&vm.id);
    let counts = daemon.vm_of(guest.pid()).expect("it runs").pages;
    assert_eq!(counts.current, POPULATED + 1, "{counts:?}");
    assert_eq!(counts.absent, counts.total - POPULATED - 1, "{counts:?}");
    std::thread::sleep(Duration::from_millis(500));
    let after = measure(guest.pid());
    oracle::compare(&daemon, &vm).expect_exact("after looking twice");
    assert_eq!(measure(guest.pid()), after, "the judge itself must not make pages");
    (before, after)
}

#[test]
fn a_ram_file_keeps_its_holes() {
    let scratch = Scratch::new("holes");
    let path = scratch.shm("ram");
    let blocks = |_| fs::metadata(&path).expect("the RAM file").blocks();
    let (before, after) = index_twice(&scratch, tiny::Ram::File(path.clone()), blocks);
    assert_eq!(before, (POPULATED + 1) * 8);
    assert_eq!(after, before);
}

#[test]
fn anonymous_memory_is_not_populated() {
    let scratch = Scratch::new("anon");
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon is there");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("kB")
    };
    let (before, after) = index_twice(&scratch, tiny::Ram::Anonymous, resident);
    assert!(after <= before + 64, "RssAnon grew from {before} kB to {after} kB");
}
