//! Protects soundness for unmodified QEMU: under KVM and TCG, with each kind of RAM, running nothing but firmware.

use std::time::Duration;

use memdex_tests::{
    Daemon, Qemu, Scratch, oracle,
    qemu::{Accelerator, Backend, Options},
};

fn firmware(name: &str, accelerator: Accelerator, backend: Backend) {
    let scratch = Scratch::new(name);
    let daemon = Daemon::start(&scratch);
    let options = Options::firmware(64, backend, accelerator);
    let mut guest = Qemu::start(&scratch, &scratch.name("q"), &options);
    let (vm, took) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(3));
    eprintln!("seen after {took:?}");
    assert_eq!(vm.name, scratch.name("q"));
    assert_eq!(vm.accelerator, if accelerator == Accelerator::Kvm { "kvm" } else { "tcg" });
    assert!(vm.vmm.starts_with("qemu-system"), "{vm:?}");
    for round in 0..8 {
        // A reset lets the firmware write again.
        if round % 3 == 2 {
            guest.qmp().run("system_reset", &serde_json::json!({}));
        }
        std::thread::sleep(Duration::from_millis(150));
        guest.pause();
        // What the map says by itself must be true a few ticks later, before a sync looks at everything.
        std::thread::sleep(Duration::from_millis(150));
        oracle::compare_claims(&daemon, &vm).expect_exact(&format!("round {round}, without a sync"));
        daemon.sync(&vm.id);
        let report = oracle::compare(&daemon, &vm);
        report.expect_exact(&format!("round {round}"));
        guest.resume();
    }
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!(vm.tracking, "exact", "{:?} {:?}", vm.advisory_reasons, vm.coverage);
    assert!(vm.pages.current > 0 && vm.pages.absent > 8000, "{:?}", vm.pages);
    assert!(guest.is_running());
}

#[test]
fn kvm_with_ram_file() {
    let scratch = Scratch::new("path");
    firmware("kfile", Accelerator::Kvm, Backend::File(scratch.shm("ram")));
}

#[test]
fn kvm_with_memfd() {
    firmware("kmemfd", Accelerator::Kvm, Backend::Memfd);
}

#[test]
fn kvm_with_private_memory() {
    firmware("kplain", Accelerator::Kvm, Backend::Plain);
}

#[test]
fn tcg_with_ram_file() {
    let scratch = Scratch::new("path");
    firmware("tfile", Accelerator::Tcg, Backend::File(scratch.shm("ram")));
}

#[test]
fn tcg_with_private_memory() {
    firmware("tplain", Accelerator::Tcg, Backend::Plain);
}
