//! Protects the first promise: a page shown as current has exactly the content of its fingerprint, whatever writes it.
//! A tiny KVM guest, its VMM and the kernel write; after each pause every page of the map is compared with the RAM.

use std::time::Duration;

use memdex_tests::{Daemon, Scratch, Tiny, contract::Vm, oracle, tiny, wait};

const APPEAR: Duration = Duration::from_secs(5);

/// First what the map says by itself a few ticks after the last write, then what it says once a sync has looked at
/// everything.
fn sync_and_compare(daemon: &Daemon, vm: &Vm, context: &str) -> oracle::Report {
    wait::pause(Duration::from_millis(100));
    oracle::compare_claims(daemon, vm).expect_exact(&format!("{context}, without a sync"));
    daemon.sync(&vm.id);
    let report = oracle::compare(daemon, vm);
    report.expect_exact(context);
    report
}

/// Many rounds of every way to change guest memory, half of them with a loop running while the daemon works.
fn every_way_to_write(name: &str, ram: &tiny::Ram, log: &'static str, uid: Option<u32>) {
    let scratch = Scratch::new(name);
    let options = tiny::Options { ram: ram.clone(), log, uid, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("w"), &options);
    guest.write(1, 1000, 1);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    assert_eq!(vm.accelerator, "kvm");
    assert_eq!(vm.memory_bytes, 16 << 20);
    let report = sync_and_compare(&daemon, &vm, "first index");
    assert_eq!(report.states[2], 1001, "the program and 1000 pages are not zero: {report}");
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!(vm.tracking, "exact", "{:?}", vm.advisory_reasons);

    guest.run("loop 3000 1 3000");
    guest.run("pause");
    for round in 0..16_u32 {
        let first = 1 + u64::from(round) * 97;
        guest.write(first, 200, round * 1000);
        guest.run(&format!("poke {} 7 {round}", first + 50));
        guest.run(&format!("fill {} 3", first + 120));
        guest.run(&format!("zero {} 20", first + 150));
        match (round % 4, *ram == tiny::Ram::Anonymous) {
            (0, _) => guest.run(&format!("madvise 0 {} 5 dontneed", first + 10)),
            (1, false) => guest.run(&format!("punch 0 {} 9", first + 60)),
            (2, false) => guest.run(&format!("madvise 0 {} 4 remove", first + 90)),
            _ => String::new(),
        };
        if round % 2 == 1 {
            guest.run("resume");
            std::thread::sleep(Duration::from_millis(120));
            guest.run("pause");
        }
        sync_and_compare(&daemon, &vm, &format!("round {round}"));
    }
    daemon.verify(&vm.id);
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!(vm.mismatches, 0);
    let dirty = guest.run("dirty");
    assert_eq!(dirty.starts_with("0 "), log == "none", "KVM's own log reports: {dirty}");
}

#[test]
fn memfd_ram_without_kvm_dirty_log() {
    every_way_to_write("memfd", &tiny::Ram::Memfd, "none", None);
}

#[test]
fn memfd_ram_with_dirty_ring() {
    every_way_to_write("ring", &tiny::Ram::Memfd, "ring", None);
}

#[test]
fn shm_file_ram_with_dirty_bitmap_of_an_ordinary_user() {
    let scratch = Scratch::new("path");
    every_way_to_write("shm", &tiny::Ram::File(scratch.shm("ram")), "bitmap", Some(65534));
}

#[test]
fn anonymous_ram_without_kvm_dirty_log() {
    every_way_to_write("anon", &tiny::Ram::Anonymous, "none", None);
}

#[test]
fn anonymous_ram_with_dirty_ring() {
    every_way_to_write("aring", &tiny::Ram::Anonymous, "ring", None);
}

/// Slots come, move and go while the guest writes into them.
#[test]
fn slots_may_change_under_load() {
    let scratch = Scratch::new("slots");
    let mut guest = Tiny::start(&scratch, &scratch.name("s"));
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    guest.run("loop 2000 1 20000");
    for round in 0..6_u64 {
        // Every slot has a length of its own, by which the oracle tells anonymous ones apart.
        guest.run(&format!("slot add 1 8192 {}", 512 + round));
        guest.run(&format!("slot add 2 12288 {}", 700 + round));
        std::thread::sleep(Duration::from_millis(100));
        guest.run("slot move 1 16384");
        std::thread::sleep(Duration::from_millis(50));
        if round % 2 == 0 {
            guest.run("slot del 1");
        }
        guest.run("pause");
        let expected = 4096 + 700 + round + if round % 2 == 0 { 0 } else { 512 + round };
        wait::until("the map to show the slots", Duration::from_secs(1), || {
            (daemon.vm_of(guest.pid())?.pages.total == expected).then_some(())
        });
        let report = sync_and_compare(&daemon, &vm, &format!("round {round}"));
        assert_eq!(report.checked, expected);
        guest.run("resume");
        if round % 2 == 1 {
            guest.run("slot del 1");
        }
        guest.run("slot del 2");
    }
}

/// What tracking costs must not be paid in lost writes: a fast writer, no pause until the end.
#[test]
fn heavy_load_is_right_at_every_pause() {
    let scratch = Scratch::new("load");
    let options = tiny::Options { mib: 64, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("l"), &options);
    guest.write(1, 12000, 5);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    guest.run("loop 20000 1 16000");
    for round in 0..5 {
        std::thread::sleep(Duration::from_millis(700));
        // Under load a sync still ends: hot pages count as of the call.
        daemon.sync(&vm.id);
        guest.run("pause");
        sync_and_compare(&daemon, &vm, &format!("round {round}"));
        guest.run("resume");
    }
}

/// A fault in anonymous memory may bring a huge page, of which only one page was written so far. The writes to its other
/// pages that follow raise no fault.
#[test]
fn pages_that_came_with_a_huge_page_are_followed() {
    let scratch = Scratch::new("huge");
    let options = tiny::Options { mib: 64, ram: tiny::Ram::Anonymous, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("h"), &options);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    for round in 1..6_u64 {
        let first = round * 1024;
        guest.write(first, 1, 1);
        wait::pause(Duration::from_millis(300));
        guest.write(first + 1, 100, 100);
        wait::pause(Duration::from_millis(300));
        // Nobody asked for a sync: what the map says by itself must be true.
        oracle::compare_claims(&daemon, &vm).expect_exact(&format!("round {round}"));
    }
    sync_and_compare(&daemon, &vm, "in the end");
}
