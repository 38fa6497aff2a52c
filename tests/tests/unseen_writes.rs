//! Protects what the map shows between two audits: system calls after which memory is written without any fault that a hook could see, or is other memory than before.

use std::time::Duration;

use memdex_tests::{Daemon, Scratch, Tiny, contract::Vm, oracle, tiny, wait};

const APPEAR: Duration = Duration::from_secs(5);
/// For so long the map is looked at: well before an audit, which comes every ten seconds.
const BEFORE_AN_AUDIT: Duration = Duration::from_secs(2);
/// So long after it was read a page is looked at only if a hook says so.
const NO_LONGER_NEW: Duration = Duration::from_secs(4);

/// A guest whose memory is all known, so that every page of it is armed.
fn known(scratch: &Scratch, ram: tiny::Ram) -> (Tiny, Daemon, Vm) {
    let options = tiny::Options { ram, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(scratch, &scratch.name("g"), &options);
    guest.write(1, 1000, 1);
    // The guest's own program has the first page.
    let daemon = Daemon::start(scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("before");
    // What was read lately is looked at all the time, whatever the hooks say.
    wait::pause(NO_LONGER_NEW);
    (guest, daemon, vm)
}

/// What the map says is right, now and as time goes by; and known in the end.
fn expect_right(daemon: &Daemon, vm: &Vm) {
    let until = std::time::Instant::now() + BEFORE_AN_AUDIT;
    while std::time::Instant::now() < until {
        wait::pause(Duration::from_millis(150));
        oracle::compare_claims(daemon, vm).expect_exact("without a sync");
    }
    daemon.sync(&vm.id);
    oracle::compare(daemon, vm).expect_exact("after a sync");
}

#[test]
fn memory_that_was_populated_for_writing() {
    let scratch = Scratch::new("populated");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Memfd);
    // virtio-mem with prealloc=on does so; the device then writes pages that are there already.
    guest.run("madvise 0 2000 50 populate");
    wait::pause(Duration::from_millis(300));
    guest.run("poke 2000 50 7");
    expect_right(&daemon, &vm);
}

#[test]
fn memory_that_was_locked() {
    let scratch = Scratch::new("locked");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Anonymous);
    guest.run("mlock 0 200 50");
    wait::pause(Duration::from_millis(300));
    guest.run("poke 200 50 7");
    guest.run("mlock 0 2000 50");
    wait::pause(Duration::from_millis(300));
    guest.run("poke 2000 50 7");
    expect_right(&daemon, &vm);
}

#[test]
fn other_memory_in_the_middle_of_a_region() {
    let scratch = Scratch::new("middle");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Anonymous);
    guest.run("replace 0 400 50");
    wait::pause(Duration::from_millis(300));
    oracle::compare_claims(&daemon, &vm).expect_exact("replaced");
    guest.run("poke 420 10 7");
    expect_right(&daemon, &vm);
}
