//! First writes of a guest to pages KVM has not mapped for it yet.

use crate::{guest_wrote, hooks, layout_with_slots, take, vmm::Vmm};

/// Whether the processor virtualizes by itself. Where it does not, KVM executes these guests in its instruction emulator, whose writes are page
/// faults of the kernel.
fn virtualizes() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    info.split_whitespace().any(|word| word == "vmx" || word == "svm")
}

#[test]
fn a_guests_first_writes_are_marked_by_guest_physical_address() {
    let mut vmm = Vmm::start(256);
    vmm.tell("kvm 0");
    vmm.tell("slot 3 0 64 64"); // so that neither slot nor address equals the page number
    vmm.tell("slot 7 1048576 0 16");
    if virtualizes() {
        // In the VMM's page table already: only KVM's own tables miss them, and only its own event tells.
        for page in 64..128 {
            vmm.tell(&format!("write {page}"));
        }
    }
    vmm.tell("code 64");
    let mut marks = hooks().track(vmm.pid(), &layout_with_slots(&vmm)).unwrap();
    vmm.tell("run");
    let all = take(&mut marks);
    assert!(guest_wrote(&all, 64), "{all:?}");
}
