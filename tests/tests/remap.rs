//! Protects the promise that a page is not shown as current where the VMM has mapped something else meanwhile, at whatever
//! moment of reading, hashing and publishing it does so.

use std::time::{Duration, Instant};

use memdex_tests::{Daemon, Scratch, Tiny, oracle, tiny, wait};

const MIB: u64 = 256;
const PAGES: u64 = MIB << 8;

#[test]
fn nothing_is_current_after_the_memory_was_replaced() {
    let scratch = Scratch::new("remap");
    let options = tiny::Options { mib: MIB, ram: tiny::Ram::Anonymous, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("r"), &options);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    daemon.sync(&vm.id);
    for round in 0..12 {
        // Every page gets other bytes and is read again; in the midst of that all of it goes away.
        guest.run(&format!("fill 0 {PAGES}"));
        std::thread::sleep(Duration::from_millis(10 * round));
        guest.run("remap 0");
        let replaced = Instant::now();
        let (counts, _) = wait::until("the daemon to notice", Duration::from_secs(5), || {
            let now = daemon.vm_of(guest.pid()).expect("it runs").pages;
            (now.current == 0).then_some(now)
        });
        assert!(
            replaced.elapsed() < Duration::from_secs(4),
            "long before an audit would find it: {counts:?}"
        );
        daemon.sync(&vm.id);
        oracle::compare(&daemon, &vm).expect_exact("after the memory was replaced");
    }
}
