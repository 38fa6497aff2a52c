//! Protects soundness for the everyday case: Linux in a QEMU that runs as an ordinary user, with a workload that writes
//! all the time and a balloon that moves.

use std::time::Duration;

use memdex_tests::{
    Daemon, Qemu, Scratch, image, oracle,
    qemu::{Backend, Boot, Options},
};

fn linux(name: &str, backend: impl FnOnce(&Scratch) -> Backend) {
    let scratch = Scratch::new(name);
    let guest = image::tiny_guest().expect("the tiny guest's image");
    let workload = image::Workload { rate: 40, files: 48, file_kib: 64, seed: 7 };
    let boot = Boot {
        command_line: guest.command_line(&workload),
        kernel: guest.kernel.vmlinuz,
        initrd: guest.initrd,
    };
    let mut options = Options::linux(128, backend(&scratch), boot);
    options.balloon = true;
    options.uid = Some(65534);
    let mut guest = Qemu::start(&scratch, &scratch.name("q"), &options);
    // The daemon is there while Linux boots: nothing writes more.
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(3));
    let took = guest.wait_for_serial(image::READY, Duration::from_secs(120));
    eprintln!("booted in {took:?}");

    let mut smallest = u64::MAX;
    for round in 0..12 {
        if round % 3 == 0 {
            guest.balloon(if round % 2 == 0 { 84 } else { 128 });
        }
        std::thread::sleep(Duration::from_millis(200));
        guest.pause();
        smallest = smallest.min(guest.balloon_mib());
        // What the map says by itself must be true a few ticks later, before a sync looks at everything.
        std::thread::sleep(Duration::from_millis(200));
        oracle::compare_claims(&daemon, &vm).expect_exact(&format!("round {round}, without a sync"));
        daemon.sync(&vm.id);
        let report = oracle::compare(&daemon, &vm);
        report.expect_exact(&format!("round {round}"));
        guest.resume();
    }
    assert!(smallest < 128, "the balloon never moved");
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!(vm.tracking, "exact", "{:?} {:?}", vm.advisory_reasons, vm.coverage);
    assert_eq!(vm.mismatches, 0);
    eprintln!("missed by eBPF: {}, balloon down to {smallest} MiB", vm.missed_by_ebpf);
}

#[test]
fn ordinary_user_with_ram_file_and_moving_balloon() {
    linux("lfile", |scratch| Backend::File(scratch.shm("ram")));
}

#[test]
fn ordinary_user_with_private_memory_and_moving_balloon() {
    linux("lplain", |_| Backend::Plain);
}
