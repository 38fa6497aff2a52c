//! KVM VMs of a VMM that is not QEMU, with the kernel's list of memory slots and without.

use indexer::vm::descriptor::{Accelerator, Backing};

use crate::harness::{Helper, NOTICED, PATIENCE, Scratch, Watch};

const MIB: u64 = 1 << 20;

#[test]
fn a_tiny_guest_on_a_memfd_is_found_with_and_without_memory_slots() {
    let helper = Helper::start("kvm-memfd");
    for kvm in [None, Some(helper.kvm_vms())] {
        let mut watch = Watch::new();
        watch.kvm = kvm;
        let vm = watch.until(helper.pid(), NOTICED, "the VM", |_| true);
        assert_eq!(vm.accelerator, Accelerator::Kvm);
        assert_eq!((vm.regions.len(), vm.regions[0].len, vm.doubts.len()), (1, MIB, 0), "{vm:#?}");
        assert!(matches!(vm.regions[0].backing, Backing::SharedFile { trackable: true, .. }));
        assert_eq!(vm.regions[0].start, helper.kvm_vms()[0].slots[0].hva);
        assert!(vm.name.ends_with(&format!("-{}", helper.pid())), "{}", vm.name);
    }
}

#[test]
fn anonymous_memory_is_known_from_the_memory_slots_only() {
    let helper = Helper::start("kvm-anonymous");
    let mut watch = Watch::new();
    watch.kvm = Some(helper.kvm_vms());
    let vm = watch.until(helper.pid(), NOTICED, "the VM", |_| true);
    assert_eq!((vm.regions.len(), vm.regions[0].len, vm.doubts.len()), (1, MIB, 0), "{vm:#?}");
    assert_eq!(vm.regions[0].backing, Backing::Anonymous);
    assert_eq!(vm.memslots, helper.kvm_vms()[0].slots);

    let vm = Watch::new().until(helper.pid(), NOTICED * 2, "the VM without slots", |_| true);
    assert!(vm.regions.is_empty());
    assert_eq!(vm.doubts.len(), 1);
}

#[test]
fn regions_are_in_guest_order() {
    let helper = Helper::start("kvm-two-slots");
    let mut watch = Watch::new();
    watch.kvm = Some(helper.kvm_vms());
    let vm = watch.until(helper.pid(), NOTICED, "the VM", |_| true);
    let slots = &helper.kvm_vms()[0].slots;
    let places: Vec<_> = vm.regions.iter().map(|region| (region.start, region.len)).collect();
    assert_eq!(places, [(slots[0].hva, MIB), (slots[1].hva, 2 * MIB)]);
}

#[test]
fn a_slot_that_goes_takes_its_region_along() {
    let helper = Helper::start("kvm-two-slots");
    let mut watch = Watch::new();
    watch.kvm = Some(helper.kvm_vms());
    watch.until(helper.pid(), NOTICED, "the VM", |vm| vm.regions.len() == 2);
    watch.kvm.as_mut().unwrap()[0].slots.remove(0);
    let vm = watch.look(helper.pid()).unwrap();
    assert_eq!((vm.regions.len(), vm.regions[0].len), (1, 2 * MIB));
    // And it comes back, behind the one that stayed.
    watch.kvm = Some(helper.kvm_vms());
    let vm = watch.look(helper.pid()).unwrap();
    assert_eq!((vm.regions[0].len, vm.regions[1].len), (2 * MIB, MIB));
}

#[test]
fn two_machines_in_one_process_are_a_doubt() {
    let helper = Helper::start("kvm-two-machines");
    let mut watch = Watch::new();
    watch.kvm = Some(helper.kvm_vms());
    let vm = watch.until(helper.pid(), NOTICED, "the VM", |_| true);
    assert_eq!((vm.regions.len(), vm.doubts.len()), (2, 1), "{vm:#?}");
}

#[test]
fn a_forked_child_is_no_second_vm_but_a_doubt() {
    let helper = Helper::start("kvm-fork");
    let child = u32::try_from(helper.number("child")).unwrap();
    let mut watch = Watch::new();
    let vm = watch.until(helper.pid(), PATIENCE / 2, "the doubt", |vm| !vm.doubts.is_empty());
    assert!(vm.doubts.iter().all(|doubt| doubt.contains(&format!("process {child} "))), "{:?}", vm.doubts);
    assert_eq!(watch.look(child), None);
}

#[test]
fn a_list_that_names_the_wrong_process_is_not_believed() {
    // As if the pid had been given to another process since the kernel made its list.
    let helper = Helper::start("kvm-anonymous");
    let other = crate::harness::Process::start(std::process::Command::new("sleep").arg("100"));
    let mut watch = Watch::new();
    let mut vms = helper.kvm_vms();
    vms[0].pid = other.pid();
    watch.kvm = Some(vms);
    for _ in 0..6 {
        assert_eq!(watch.look(other.pid()), None);
        std::thread::sleep(crate::harness::TICK);
    }
}

#[test]
fn an_old_process_that_turns_into_a_vmm_is_noticed() {
    let go = Scratch::new("/tmp", "go");
    let helper = Helper::start(&format!("late-kvm {}", go.path()));
    let mut watch = Watch::new();
    let start = std::time::Instant::now();
    while start.elapsed().as_secs() < 4 {
        assert_eq!(watch.look(helper.pid()), None);
        std::thread::sleep(crate::harness::TICK);
    }
    std::fs::write(&go.0, "").unwrap();
    watch.until(helper.pid(), NOTICED, "the VM", |vm| vm.regions.len() == 1);
}

#[test]
fn an_io_uring_with_registered_buffers_is_a_doubt() {
    let helper = Helper::start("uring");
    let vm = Watch::new().until(helper.pid(), NOTICED, "the VM", |_| true);
    assert!(vm.doubts.len() == 1 && vm.doubts[0].contains("registered buffers (1)"), "{:?}", vm.doubts);
}
