//! Protects the promise that a page is not shown as current where the VMM has mapped something else meanwhile, at whatever
//! moment of reading, hashing and publishing it does so.

use std::time::Duration;

use memdex_tests::{Daemon, Scratch, Tiny, daemon::Options, oracle, tiny, wait};

const MIB: u64 = 768;
const PAGES: u64 = MIB << 8;

#[test]
fn nothing_is_current_after_the_memory_was_replaced() {
    let scratch = Scratch::new("remap");
    let ram = tiny::Options { mib: MIB, ram: tiny::Ram::Anonymous, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("r"), &ram);
    // Without the huge pages that the VMM asked for at first.
    guest.run("remap 0");
    // Two batches' worth of threads, so that one is read for long while the next is armed.
    let options =
        Options { arguments: vec!["--hash-threads".to_owned(), "2".to_owned()], ..Options::default() };
    for round in 0..8 {
        // Every other page gets bytes and is read: each is armed by a call of its own, which takes long. In the midst of that all of it
        // goes away.
        guest.run(&format!("scatter 0 {PAGES}"));
        let daemon = Daemon::start_with(&scratch, &format!("daemon-{round}"), &options);
        let (vm, _) = wait::until("the first pages to be current", Duration::from_secs(20), || {
            daemon.vm_of(guest.pid()).filter(|vm| vm.pages.current > 1000)
        });
        std::thread::sleep(Duration::from_millis(11 * round));
        guest.run("remap 0");
        // Long before an audit would find it.
        wait::until("the daemon to notice", Duration::from_secs(5), || {
            daemon.vm_of(guest.pid()).filter(|vm| vm.pages.current == 0)
        });
        daemon.sync(&vm.id);
        oracle::compare(&daemon, &vm).expect_exact("after the memory was replaced");
    }
}
