//! Protects the promises that looking does not make a guest's memory grow (pages that were never populated stay that way), nor the daemon's own.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use memdex_tests::{Daemon, Scratch, Tiny, daemon, oracle, tiny, wait};

const POPULATED: u64 = 700;

/// `measure` says how much there is of the guest's memory, `unit` how much a page is.
fn index_twice(scratch: &Scratch, ram: tiny::Ram, unit: u64, measure: impl Fn(u32) -> u64) -> (u64, u64) {
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
    // The rest of a huge page is there, though nobody wrote it.
    let populated = measure(guest.pid()) / unit;
    assert_eq!(counts.absent, counts.total - populated, "{counts:?}");
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
    let (before, after) = index_twice(&scratch, tiny::Ram::File(path.clone()), 8, blocks);
    assert_eq!(before, (POPULATED + 1) * 8);
    assert_eq!(after, before);
}

#[test]
fn anonymous_memory_is_not_populated() {
    let scratch = Scratch::new("anon");
    // kB resident of the mapping of this size.
    let resident = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it runs");
        let mut lines = text
            .lines()
            .skip_while(|line| line.strip_prefix("Size:").is_none_or(|size| size.trim() != "65536 kB"));
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).expect("64 MiB of RAM are mapped");
        line.trim().trim_end_matches(" kB").parse().expect("kB")
    };
    let (before, after) = index_twice(&scratch, tiny::Ram::Anonymous, 4, resident);
    assert_eq!(after, before);
}

/// Rounds of contents and VMs that come and go; and how many at each end are compared.
const ROUNDS: u32 = 12;
const SOME: usize = 4;

/// A third of what the last rounds brought would be more than this. (`cargo xtask bench --only daemon_growth` has a whole day of it.)
#[test]
fn a_daemon_does_not_grow_with_what_has_gone() {
    let scratch = Scratch::new("churn");
    let options = tiny::Options { mib: 64, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("stays"), &options);
    let options = daemon::Options {
        arguments: ["--guest-budget", "100"].map(str::to_owned).into(),
        ..Default::default()
    };
    let mut daemon = Daemon::start_with(&scratch, "memdexd", &options);
    let (stays, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    let mut resident = Vec::new();
    for round in 0..ROUNDS {
        guest.write(1, 16_000, 1 + round * 20_000);
        let mut passing = Tiny::start(&scratch, &scratch.name(&format!("passes{round}")));
        passing.write(1, 4000, 1_000_000 + round * 5000);
        let (vm, _) = daemon.wait_for_vm(passing.pid(), Duration::from_secs(5));
        daemon.sync(&vm.id);
        let gone = passing.pid();
        drop(passing);
        wait::until("the VM to be forgotten", Duration::from_secs(10), || {
            daemon.vm_of(gone).is_none().then_some(())
        });
        daemon.sync(&stays.id);
        resident.push(memory_of(daemon.process().pid()));
    }
    oracle::compare(&daemon, &stays).expect_exact("after all that");
    let most = |sizes: &[u64]| sizes.iter().copied().max().expect("some");
    let (first, last) = (most(&resident[..SOME]), most(&resident[resident.len() - SOME..]));
    assert!(last <= first + 2048, "it grew from {first} to {last} KiB: {resident:?}");
}

/// KiB that are resident.
fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
