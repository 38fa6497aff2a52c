//! Protects the promise that the map follows the guest by itself: a write to a quiet page is seen, and the page is current
//! again soon, without anybody asking.

use std::time::{Duration, Instant};

use memdex_tests::{
    Daemon, Scratch, Tiny,
    contract::{Page, State},
    oracle, wait,
};

fn page(daemon: &Daemon, vm: &str, number: u64) -> Page {
    daemon.pages(vm).swap_remove(number as usize)
}

#[test]
fn a_written_quiet_page_becomes_current_again_by_itself() {
    let scratch = Scratch::new("fresh");
    let mut guest = Tiny::start(&scratch, &scratch.name("f"));
    guest.write(1, 500, 1);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    daemon.sync(&vm.id);
    let mut slowest = Duration::ZERO;
    for round in 0..10_u64 {
        let number = 20 + round * 13;
        let before = page(&daemon, &vm.id, number);
        assert_eq!(before.state, State::Current);
        let begun = Instant::now();
        guest.write(number, 1, 900_000 + round as u32);
        let (after, _) =
            wait::until("the page to be current with its new content", Duration::from_secs(2), || {
                let now = page(&daemon, &vm.id, number);
                (now.state == State::Current && now.fingerprint != before.fingerprint).then_some(now)
            });
        slowest = slowest.max(begun.elapsed());
        assert!(after.generation > before.generation, "{before:?} {after:?}");
    }
    eprintln!("slowest: {slowest:?}, with the command's own time");
    oracle::compare(&daemon, &vm).expect_exact("after the writes were followed");
}

/// The generation is what clients cache by: nothing written, nothing changes; something written, `--since` shows it.
#[test]
fn since_shows_what_changed_and_nothing_else() {
    let scratch = Scratch::new("since");
    let mut guest = Tiny::start(&scratch, &scratch.name("g"));
    guest.write(1, 300, 1);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    daemon.sync(&vm.id);
    std::thread::sleep(Duration::from_millis(300));
    let quiet = daemon.vm_of(guest.pid()).expect("it runs").generation;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(daemon.vm_of(guest.pid()).expect("it runs").generation, quiet, "nobody wrote anything");

    guest.write(40, 8, 70_000);
    guest.run("zero 100 2");
    guest.run("punch 0 200 1");
    daemon.sync(&vm.id);
    let since = quiet.to_string();
    let text = daemon.succeed(&["pages", &vm.id, "--since", &since, "-o", "jsonl"]);
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let changed: Vec<Page> = lines.map(|line| serde_json::from_slice(line).expect("a page")).collect();
    let numbers: Vec<u64> = changed.iter().map(|page| page.page).collect();
    assert_eq!(numbers, [40, 41, 42, 43, 44, 45, 46, 47, 100, 101, 200]);
    assert!(changed.iter().all(|page| page.generation > quiet), "{changed:?}");
}
