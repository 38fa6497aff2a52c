//! Protects the promise that a wrong page does not stay unnoticed: known pages are read again in the background, what does not agree makes
//! the VM advisory, is counted and described; and nothing is called wrong that was merely written.
//!
//! The wrong page is a real one: the RAM file is written with write(2), which no page table shows and which needs no mapping that
//! discovery could find.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use memdex_tests::{Daemon, PAGE, Scratch, Tiny, contract::Vm, daemon, oracle, tiny, wait};

const APPEAR: Duration = Duration::from_secs(5);

fn daemon(scratch: &Scratch, percent: &str) -> Daemon {
    let arguments = ["--audit-percent", percent].map(str::to_owned).to_vec();
    Daemon::start_with(scratch, "memdexd", &daemon::Options { arguments, ..daemon::Options::default() })
}

/// A guest whose pages 1 to 2000 hold something, known to the daemon.
fn known_guest(scratch: &Scratch, ram: &Path, daemon: &Daemon) -> (Tiny, Vm) {
    let options = tiny::Options { ram: tiny::Ram::File(ram.to_owned()), ..tiny::Options::default() };
    let mut guest = Tiny::start_with(scratch, &scratch.name("c"), &options);
    guest.write(1, 2000, 7);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    let vm = daemon.vm_of(vm.pid).expect("it runs");
    assert_eq!(vm.tracking, "exact", "{:?}", vm.advisory_reasons);
    (guest, vm)
}

fn write_unseen(ram: &Path, page: u64) {
    let file = OpenOptions::new().write(true).open(ram).expect("the RAM file");
    file.write_all_at(b"nobody has seen me", page * PAGE + 100).expect("the RAM file can be written");
}

fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = String::from_utf8(daemon.get("/metrics").body).expect("text");
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number at the end")
}

#[test]
fn what_changed_unseen_is_found_said_and_mistrusted() {
    let scratch = Scratch::new("unseen");
    let ram = scratch.shm("ram");
    let daemon = daemon(&scratch, "20");
    let (_guest, vm) = known_guest(&scratch, &ram, &daemon);
    write_unseen(&ram, 1234);
    let (vm, took) = wait::until("the mismatch", Duration::from_secs(20), || {
        daemon.vm_of(vm.pid).filter(|vm| vm.mismatches > 0)
    });
    eprintln!("found after {took:?}, {} pages checked", vm.audit_checked);
    assert_eq!((vm.mismatches, vm.tracking.as_str()), (1, "advisory"), "{vm:?}");
    let reasons = vm.advisory_reasons.join("; ");
    assert!(reasons.contains("page 1234") && reasons.contains("no witness saw"), "{reasons}");
    assert_eq!(metric(&daemon, "memdex_audit_mismatch_total"), 1.0);
    assert!(metric(&daemon, "memdex_audit_checked_total") >= 1.0);
    assert_eq!(metric(&daemon, "memdex_vm_mismatches_total"), 1.0);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("differs from what the map says"));
    let line = line.unwrap_or_else(|| panic!("nothing in the log: {log}"));
    for words in
        ["page=1234", "state=Current", "generation=", "before=", "now=", "settled_ms_ago=", "marked=false"]
    {
        assert!(line.contains(words), "{words} is missing in {line}");
    }

    // From now on a sync believes nothing: it reads everything.
    write_unseen(&ram, 77);
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("a sync of a VM that is written unseen");
    let diff = daemon.diff(&vm.id, &daemon.url());
    assert!(diff.staleness_ms.is_some(), "{diff:?}");
    assert_eq!(daemon.vm_of(vm.pid).expect("it runs").tracking, "advisory");
}

#[test]
fn without_a_budget_nothing_is_read_and_verify_finds_it() {
    let scratch = Scratch::new("nobudget");
    let ram = scratch.shm("ram");
    let daemon = daemon(&scratch, "0");
    let (_guest, vm) = known_guest(&scratch, &ram, &daemon);
    write_unseen(&ram, 500);
    std::thread::sleep(Duration::from_millis(1500));
    let vm = daemon.vm_of(vm.pid).expect("it runs");
    assert_eq!((vm.audit_checked, vm.mismatches, vm.tracking.as_str()), (0, 0, "exact"), "{vm:?}");
    let verify = daemon.memdex(&["verify", &vm.id]);
    let words = String::from_utf8_lossy(&verify.stdout);
    assert_eq!(verify.status.code(), Some(1), "{words}");
    assert!(words.contains("1 mismatches") && words.contains("page 500"), "{words}");
    let vm = daemon.vm_of(vm.pid).expect("it runs");
    assert_eq!((vm.mismatches, vm.tracking.as_str()), (1, "advisory"), "{vm:?}");
    assert_eq!(metric(&daemon, "memdex_audit_mismatch_total"), 0.0);
}

/// A guest that writes all the time, whose VMM writes and throws memory away, and an audit that has all the time there is.
#[test]
fn what_was_written_meanwhile_is_no_mismatch() {
    for ram in [tiny::Ram::Memfd, tiny::Ram::Anonymous] {
        let scratch = Scratch::new("heavy");
        let daemon = daemon(&scratch, "100");
        let options = tiny::Options { mib: 64, ram: ram.clone(), ..tiny::Options::default() };
        let mut guest = Tiny::start_with(&scratch, &scratch.name("h"), &options);
        guest.write(1, 16_000, 5);
        let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
        daemon.sync(&vm.id);
        guest.run("loop 20000 1 16000");
        let begun = Instant::now();
        let mut round = 0;
        while begun.elapsed() < Duration::from_secs(3) {
            round += 1;
            let first = 1 + round * 37 % 15_000;
            guest.run(&format!("poke {first} 50 {round}"));
            guest.run(&format!("fill {} 20", first + 60));
            let discard = if ram == tiny::Ram::Memfd { "punch 0" } else { "madvise 0" };
            let how = if ram == tiny::Ram::Memfd { "" } else { " dontneed" };
            guest.run(&format!("{discard} {} 30{how}", first + 90));
            std::thread::sleep(Duration::from_millis(3));
        }
        guest.run("pause");
        let vm = daemon.vm_of(vm.pid).expect("it runs");
        eprintln!(
            "{} pages checked, {} passed over",
            vm.audit_checked,
            metric(&daemon, "memdex_audit_passed_over_total")
        );
        assert_eq!((vm.mismatches, vm.tracking.as_str()), (0, "exact"), "{vm:?}");
        assert!(vm.audit_checked > 1000, "it had no chance to be wrong: {vm:?}");
        daemon.sync(&vm.id);
        oracle::compare(&daemon, &vm).expect_exact("in the end");
    }
}
