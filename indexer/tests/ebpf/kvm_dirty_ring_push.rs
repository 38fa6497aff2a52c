//! Writes of a guest, as KVM's dirty ring shows them.

use indexer::watch::ebpf::{Marks, Taken};

use crate::{All, guest_wrote, hooks, layout_with_slots, take, vmm::Vmm};

/// A guest of 64 pages at page 64 of the RAM, whose memory has been touched already, so that no page fault marks anything.
fn guest() -> (Vmm, Marks) {
    let mut vmm = Vmm::start(256);
    vmm.tell("kvm 1");
    vmm.tell("slot 3 0 64 64");
    for page in 64..128 {
        vmm.tell(&format!("write {page}"));
    }
    vmm.tell("code 64");
    let layout = layout_with_slots(&vmm);
    let marks = hooks().track(vmm.pid(), &layout).unwrap();
    (vmm, marks)
}

#[test]
fn a_guests_writes_are_marked_by_slot_and_offset() {
    let (mut vmm, mut marks) = guest();
    assert_eq!(take(&mut marks), All::default());
    vmm.tell("run");
    let all = take(&mut marks);
    assert!(guest_wrote(&all, 64), "{all:?}");
}

#[test]
fn a_changed_memslot_makes_the_layout_stale_until_tracked_anew() {
    let (mut vmm, mut marks) = guest();
    vmm.tell("slot 4 16777216 0 16");
    vmm.tell("run");
    let all = take(&mut marks);
    assert_eq!(all.taken, Taken { overflowed: true, layout_stale: true, ..Taken::default() });

    let mut renewed = hooks().track(vmm.pid(), &layout_with_slots(&vmm)).unwrap();
    assert_eq!(take(&mut marks), All::default(), "the old marks, one last time");
    drop(marks);
    vmm.tell("run");
    assert_eq!(take(&mut renewed).taken, Taken::default());
}
