//! Protects the promise that VMs come, go, crash and change while the daemon runs, that each is noticed within a second,
//! and that none of it disturbs the others, the guest, or the daemon.

use std::{
    fs,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, Qemu, Scratch, Tiny, oracle,
    qemu::{Accelerator, Backend, Options},
    tiny, wait,
};

const APPEAR: Duration = Duration::from_secs(5);
/// Discovery's promise.
const NOTICED: Duration = Duration::from_secs(1);

fn wait_until_gone(daemon: &Daemon, pid: u32) {
    let ((), took) = wait::until("the VM to vanish", APPEAR, || daemon.vm_of(pid).is_none().then_some(()));
    assert!(took <= NOTICED, "the dead VM was shown for {took:?}");
}

#[test]
fn a_vm_killed_at_any_moment_takes_nothing_with_it() {
    let scratch = Scratch::new("kill");
    let mut witness = Tiny::start(&scratch, &scratch.name("w"));
    witness.write(1, 800, 1);
    let mut daemon = Daemon::start(&scratch);
    let (bystander, _) = daemon.wait_for_vm(witness.pid(), APPEAR);
    daemon.sync(&bystander.id);
    witness.run("loop 500 1 2000");
    for round in 0..14_u64 {
        let options = tiny::Options {
            mib: 48,
            ram: if round % 2 == 0 { tiny::Ram::Memfd } else { tiny::Ram::Anonymous },
            ..tiny::Options::default()
        };
        let mut victim = Tiny::start_with(&scratch, &scratch.name("v"), &options);
        victim.write(1, 12000, 3);
        if round % 3 == 0 {
            victim.run("loop 10000 1 12000");
        }
        // Before discovery, while attaching, during the first index, and after.
        std::thread::sleep(Duration::from_millis([0, 5, 20, 60, 130, 260, 600][round as usize % 7]));
        let pid = victim.pid();
        victim.kill();
        wait_until_gone(&daemon, pid);
        assert!(daemon.process().is_running());
    }
    witness.run("pause");
    daemon.sync(&bystander.id);
    oracle::compare(&daemon, &bystander).expect_exact("the other VM");
}

#[test]
fn a_request_about_a_vm_that_dies_ends_with_a_clear_answer() {
    let scratch = Scratch::new("gone");
    let mut guest = Tiny::start(&scratch, &scratch.name("g"));
    guest.write(1, 3000, 1);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            loop {
                let output = daemon.memdex(&["sync", &vm.id, "--timeout", "5s"]);
                if !output.status.success() {
                    return output;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(150));
        guest.kill();
        let output = asking.join().expect("the command ends");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 3)), "{output:?}");
        assert!(!words.is_empty() && !words.contains("panicked"), "{words}");
    });
    wait_until_gone(&daemon, vm.pid);
    assert_eq!(daemon.memdex(&["pages", &vm.id, "-o", "jsonl"]).status.code(), Some(3));
}

#[test]
fn vms_from_before_and_after_the_daemon_are_seen() {
    let scratch = Scratch::new("when");
    let mut before = Tiny::start(&scratch, &scratch.name("b"));
    before.write(1, 100, 1);
    let daemon = Daemon::start(&scratch);
    let mut after = Tiny::start(&scratch, &scratch.name("a"));
    let begun = Instant::now();
    after.write(1, 100, 2);
    for guest in [&mut before, &mut after] {
        let (vm, _) = daemon.wait_for_vm(guest.pid(), NOTICED);
        daemon.sync(&vm.id);
        oracle::compare(&daemon, &vm).expect_exact(&vm.name);
        assert!(vm.name.ends_with(&format!("-{}", guest.pid())), "{vm:?}");
    }
    eprintln!("both synced after {:?}", begun.elapsed());
    let names: Vec<String> = daemon.vms().into_iter().map(|vm| vm.name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// The kernel hands out the number of a dead process again: the map of the old VM must not be shown for the new one.
#[test]
fn a_reused_pid_is_another_vm() {
    let scratch = Scratch::new("reuse");
    let daemon = Daemon::start(&scratch);
    let mut old = Tiny::start(&scratch, &scratch.name("r"));
    old.write(1, 900, 5);
    let pid = old.pid();
    let (old_vm, _) = daemon.wait_for_vm(pid, APPEAR);
    daemon.sync(&old_vm.id);
    old.kill();
    drop(old);
    let mut new = None;
    for _ in 0..200 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
            .expect("root may choose the next pid");
        let guest = Tiny::start(&scratch, &scratch.name("r"));
        if guest.pid() == pid {
            new = Some(guest);
            break;
        }
    }
    let mut new = new.expect("the pid could not be had again in 200 attempts");
    let (new_vm, _) = wait::until("the new VM", APPEAR, || daemon.vm_of(pid).filter(|vm| vm.id != old_vm.id));
    new.write(500, 60, 77);
    daemon.sync(&new_vm.id);
    let report = oracle::compare(&daemon, &new_vm);
    report.expect_exact("the VM with the old pid");
    assert_eq!(report.states[2], 61, "{report}");
    assert!(daemon.vms().iter().all(|vm| vm.id != old_vm.id));
}

#[test]
fn plugged_memory_is_indexed_and_unplugged_memory_is_forgotten() {
    let scratch = Scratch::new("plug");
    let daemon = Daemon::start(&scratch);
    let mut options = Options::firmware(64, Backend::Memfd, Accelerator::Kvm);
    options.hotplug_mib = 256;
    let mut qemu = Qemu::start(&scratch, &scratch.name("q"), &options);
    let (vm, _) = daemon.wait_for_vm(qemu.pid(), APPEAR);
    assert_eq!(vm.memory_bytes, 64 << 20);
    qemu.plug_memory("dimm", 128);
    let (vm, took) = wait::until("the DIMM in the map", APPEAR, || {
        daemon.vm_of(vm.pid).filter(|vm| vm.memory_bytes == 192 << 20)
    });
    assert!(took <= NOTICED, "the DIMM was noticed after {took:?}");
    qemu.pause();
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("with the DIMM");

    let mut tiny = Tiny::start(&scratch, &scratch.name("t"));
    tiny.write(1, 50, 1);
    let (vm, _) = daemon.wait_for_vm(tiny.pid(), APPEAR);
    for (command, mib) in [("slot add 3 8192 1024", 20), ("slot del 3", 16)] {
        tiny.run(command);
        let (_, took) =
            wait::until(command, APPEAR, || daemon.vm_of(vm.pid).filter(|vm| vm.memory_bytes == mib << 20));
        assert!(took <= NOTICED, "{command} was noticed after {took:?}");
    }
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("after the slot has gone");
}

/// The guest must not care whether a daemon comes, goes or crashes, and the next one goes on.
#[test]
fn the_guest_outlives_the_daemon_and_the_next_daemon_goes_on() {
    let scratch = Scratch::new("again");
    let mut guest = Tiny::start(&scratch, &scratch.name("t"));
    guest.write(1, 2000, 1);
    let mut qemu =
        Qemu::start(&scratch, &scratch.name("q"), &Options::firmware(64, Backend::Memfd, Accelerator::Kvm));
    let mut ids = Vec::new();
    for round in 0..4_u32 {
        let mut daemon = Daemon::start(&scratch);
        for pid in [guest.pid(), qemu.pid()] {
            let (vm, _) = daemon.wait_for_vm(pid, APPEAR);
            ids.push(vm.id);
        }
        guest.run("loop 2000 1 2500");
        std::thread::sleep(Duration::from_millis(200));
        if round < 3 {
            if round % 2 == 0 {
                let took = daemon.stop();
                eprintln!("stopped in {took:?}");
                assert!(!daemon.socket().exists(), "the socket was left behind");
            } else {
                daemon.kill();
            }
        }
        // Nobody watches now, and the guest goes on writing.
        std::thread::sleep(Duration::from_millis(100));
        guest.run("pause");
        guest.write(1 + u64::from(round), 500, round * 5000);
        assert!(guest.is_running() && qemu.is_running());
        if round == 3 {
            qemu.pause();
            for pid in [guest.pid(), qemu.pid()] {
                let (vm, _) = daemon.wait_for_vm(pid, APPEAR);
                daemon.sync(&vm.id);
                oracle::compare(&daemon, &vm).expect_exact(&vm.name);
                let vm = daemon.vm_of(pid).expect("it runs");
                assert_eq!(vm.tracking, "exact", "{:?}", vm.advisory_reasons);
            }
        }
    }
    assert_eq!(ids[..2], ids[6..], "the id names the VM for as long as its process lives");
}
