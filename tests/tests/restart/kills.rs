//! Daemons that are killed under load, and what that costs the next one.

use super::*;

/// For each kind of memory: a hundred together.
const KILLS: u32 = 50;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_hundred_kills_under_load_forget_nothing_and_make_nothing_up_half_of_them_with_a_memfd() {
    kills(tiny::Ram::Memfd);
}

#[test]
fn a_hundred_kills_under_load_forget_nothing_and_make_nothing_up_half_of_them_with_private_memory() {
    kills(tiny::Ram::Anonymous);
}

fn kills(ram: tiny::Ram) {
    const QUIET: u64 = 3000;
    const BUSY: u64 = 500;
    let scratch = Scratch::new("kills");
    let mut guests = [ram].map(|ram| {
        let name = scratch.name(if ram == tiny::Ram::Memfd { "m" } else { "a" });
        let mut guest = Tiny::start_with(&scratch, &name, &tiny::Options { ram, ..tiny::Options::default() });
        guest.write(1, QUIET, 7);
        // Once, so that huge pages are there: the first write to one is a write to all of it.
        guest.write(QUIET + 1, BUSY, 9);
        guest
    });
    // However slow the machine is: that there was no direct I/O is not the question here.
    let options =
        Options { arguments: vec!["--settle-seconds".to_owned(), "0".to_owned()], ..Options::default() };
    let mut daemon = Daemon::start_with(&scratch, "memdexd", &options);
    for guest in &guests {
        let vm = settled(&daemon, guest);
        assert_eq!(vm.picked_up, 0, "there was nobody to pick up from");
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut picked_up, mut again, mut founds) = (0, 0, 0);
    let found = |daemon: &Daemon| daemon.log().matches("found a VM").count();
    for guest in &mut guests {
        guest.run(&format!("loop 3000 {} {BUSY}", QUIET + 1));
    }
    for kill in 1..=KILLS {
        // It dies before it has found anything, while it attaches, while it looks what holds, or at work.
        if kill % 8 != 0 {
            wait::until("the daemon to find the VMs", APPEAR, || (found(&daemon) > founds).then_some(()));
        }
        let most = [3_000, 10_000, 30_000, 150_000][random(&mut state) as usize % 4];
        std::thread::sleep(Duration::from_micros(random(&mut state) % most));
        daemon.kill();
        founds = found(&daemon);
        if kill % 10 != 0 {
            daemon = Daemon::launch(&scratch, "memdexd", &options);
            continue;
        }
        std::thread::sleep(Duration::from_millis(20));
        for guest in &mut guests {
            guest.run("pause");
        }
        daemon = Daemon::start_with(&scratch, "memdexd", &options);
        for guest in &guests {
            let vm = settled(&daemon, guest);
            let read = hashed(&daemon, &vm);
            assert!(
                vm.picked_up >= QUIET,
                "after kill {kill} only {} pages were known: {vm:?}",
                vm.picked_up
            );
            assert!(
                read <= BUSY,
                "after kill {kill} {read} pages were hashed, and {BUSY} may have been written"
            );
            assert_eq!(vm.pages.stale, 0);
            judge(&daemon, &vm, &format!("after kill {kill}"));
            assert_eq!(vm.mismatches, 0);
            daemon.verify(&vm.id);
            picked_up += vm.picked_up;
            again += read;
        }
        // Nobody writes now: this time nothing at all may be hashed.
        daemon.kill();
        daemon = Daemon::start_with(&scratch, "memdexd", &options);
        for guest in &guests {
            let vm = settled(&daemon, guest);
            assert_eq!(
                (vm.picked_up, hashed(&daemon, &vm)),
                (vm.pages.total, 0),
                "after kill {kill}: {vm:?}"
            );
            assert_eq!(vm.pages.stale, 0);
            judge(&daemon, &vm, &format!("after kill {kill}, with nothing written"));
        }
        for guest in &mut guests {
            guest.run("resume");
        }
        founds = 0;
    }
    eprintln!("{picked_up} pages picked up, {again} hashed again");
    for guest in &mut guests {
        assert!(guest.is_running());
    }
}

/// How long it takes until a restarted daemon knows the VM again, beside the first time. No bound: the machine is a busy one.
#[test]
fn a_large_vm_is_known_again_without_hashing() {
    let scratch = Scratch::new("large");
    let options = tiny::Options { mib: 256, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("l"), &options);
    guest.run("fill 0 60000");
    let mut daemon = Daemon::start(&scratch);
    let first = settled(&daemon, &guest);
    assert!(hashed(&daemon, &first) >= 60_000);
    daemon.kill();
    drop(daemon);
    let begun = Instant::now();
    daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    eprintln!("known again {:?} after the start of the daemon", begun.elapsed());
    assert_eq!((vm.picked_up, hashed(&daemon, &vm)), (vm.pages.total, 0), "{vm:?}");
    // The index from content to place is there again too.
    assert_eq!(vm.pages.current, first.pages.current);
    daemon.verify(&vm.id);
}
