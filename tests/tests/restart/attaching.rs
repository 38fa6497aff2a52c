//! Daemons that are killed at the one moment at which a thread of the VMM has registers that are not its own.

use super::*;

/// Rounds in which a thread of the VMM has to have been seen stopped. A look takes some 10 µs, a stop lasts 100; on a busy machine it is missed often.
const SEEN: u32 = 4;
const MOST_ROUNDS: u32 = 60;

/// A field of the main thread's `status`, which the caller holds open.
fn field(status: &File, name: &str) -> String {
    let mut text = [0; 4096];
    let read = status.read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..read]);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

fn traced(status: &File) -> bool {
    field(status, "TracerPid") != "0"
}

#[test]
fn a_daemon_that_is_killed_while_it_borrows_a_thread_gives_it_back_all_the_same() {
    let scratch = Scratch::new("attaching");
    let (mut seen, mut round) = (0, 0);
    while seen < SEEN {
        round += 1;
        assert!(round <= MOST_ROUNDS, "a thread was seen stopped in {seen} rounds only");
        let mut daemon = Daemon::start(&scratch);
        let mut guest = Tiny::start(&scratch, &scratch.name(&format!("v{round}")));
        guest.run("loop 3000 100 500");
        let status = File::open(format!("/proc/{}/status", guest.pid())).expect("the VMM runs");
        let mask = field(&status, "SigBlk");
        let begun = Instant::now();
        while !traced(&status) && begun.elapsed() < APPEAR && userfaultfds(guest.pid()) == 0 {
            for _ in 0..200 {
                if traced(&status) {
                    break;
                }
            }
        }
        let caught = traced(&status);
        daemon.kill();
        seen += u32::from(caught);
        wait::until("the thread to be let go", APPEAR, || (!traced(&status)).then_some(()));
        // It goes on where it was: it answers, and takes signals as before.
        guest.run("pause");
        guest.write(1, 50, round + 1);
        assert!(guest.is_running());
        assert_eq!(field(&status, "SigBlk"), mask, "signals that are blocked");
        if caught {
            let daemon = Daemon::start(&scratch);
            let vm = settled(&daemon, &guest);
            judge(&daemon, &vm, &format!("round {round}"));
        }
    }
}
