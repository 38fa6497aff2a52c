//! The iterator over KVM's memory slots.

use indexer::{
    units::{Gpa, Hva},
    vm::descriptor::Memslot,
};

use crate::{hooks, vmm::Vmm};

/// KVM's own slots have the highest numbers.
const FIRST_OWN_SLOT: u32 = 32764;

#[test]
fn the_slots_are_those_the_vmm_set() {
    let mut vmm = Vmm::start(256);
    let found = |vmm: &Vmm| {
        let pid = vmm.pid();
        let mut vms = hooks().memslots().unwrap();
        vms.retain(|vm| vm.pid == pid);
        for vm in &mut vms {
            vm.slots.retain(|slot| slot.id & 0xffff < FIRST_OWN_SLOT);
        }
        vms
    };
    assert!(found(&vmm).is_empty(), "no VM yet");
    vmm.tell("kvm 0");
    assert!(found(&vmm)[0].slots.is_empty(), "no slots yet");

    vmm.tell("slot 3 0 64 32");
    vmm.tell("slot 130 4294967296 0 16"); // another slot of the same bucket of KVM's hash table as 2
    vmm.tell("slot 2 1048576 16 16");
    let address = vmm.ram.address;
    let slot = |id, gpa, page: u64, pages: u64| Memslot {
        id,
        gpa: Gpa(gpa),
        len: pages * 4096,
        hva: Hva(address + page * 4096),
        flags: 1,
    };
    let vms = found(&vmm);
    assert_eq!(vms.len(), 1);
    assert_eq!(vms[0].slots, [slot(2, 1 << 20, 16, 16), slot(3, 0, 64, 32), slot(130, 1 << 32, 0, 16)]);
    let link = std::fs::read_link(format!("/proc/{}/fd/{}", vmm.pid(), vms[0].fd)).unwrap();
    assert_eq!(link.to_str(), Some("anon_inode:kvm-vm"));

    let pid = vmm.pid();
    drop(vmm);
    assert!(hooks().memslots().unwrap().iter().all(|vm| vm.pid != pid), "a VM that is gone is not listed");
}

#[test]
fn many_slots_are_all_seen_and_too_many_do_not_spoil_the_rest() {
    let mut many = Vmm::start(1024);
    many.tell("kvm 0");
    let mut few = Vmm::start(16);
    few.tell("kvm 0");
    few.tell("slot 0 0 0 16");
    let count = |vmm: &Vmm| {
        let vms = hooks().memslots().unwrap();
        let vm = vms.iter().find(|vm| vm.pid == vmm.pid()).unwrap();
        vm.slots.iter().filter(|slot| slot.id < FIRST_OWN_SLOT).count()
    };
    for id in 0..700_u64 {
        many.tell(&format!("slot {id} {} {id} 1", id * 8192));
    }
    assert_eq!((count(&many), count(&few)), (700, 1));
    for id in 700..1000_u64 {
        many.tell(&format!("slot {id} {} {id} 1", id * 8192));
    }
    assert!(count(&many) >= 790);
    assert_eq!(count(&few), 1);
}
