//! What holds for all hooks: their names, their cost, and changes of layout.

use crate::{All, discarded, hooks, layout, one, take, vmm::Vmm, written};

#[test]
fn every_hook_is_attached_and_named() {
    let names: Vec<_> = hooks().status().into_iter().map(|status| status.name).collect();
    let (of_every_kernel, of_soft_dirty) = names.split_at(8);
    assert_eq!(
        of_every_kernel,
        [
            "ebpf:kvm_page_fault",
            "ebpf:kvm_dirty_ring_push",
            "ebpf:page_fault_user",
            "ebpf:page_fault_kernel",
            "ebpf:discard",
            "ebpf:remap",
            "ebpf:mmap",
            "ebpf:memslots",
        ]
    );
    // Only where the kernel has nothing better than soft-dirty bits are there more.
    let better = indexer::watch::pagemap::Pagemap::probe().is_ok();
    let more = ["ebpf:handle_mm_fault", "ebpf:migrate_pages"];
    assert!(if better { of_soft_dirty.is_empty() } else { of_soft_dirty == more }, "{names:?}");
    assert_eq!(hooks().every_fault_attached(), !better);
    assert!(hooks().faults_attached() && hooks().discards_attached());
}

#[test]
fn the_cost_of_each_program_is_measured() {
    let mut vmm = Vmm::start(64);
    let _marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    let runs = |name: &str| {
        let all = hooks().statistics();
        let program = all.iter().find(|program| program.name == name).unwrap();
        (program.runs, program.nanoseconds)
    };
    let (runs_before, nanoseconds_before) = runs("page_fault_user");
    vmm.tell("write 1");
    vmm.tell("write 2");
    let (runs_after, nanoseconds_after) = runs("page_fault_user");
    assert!(runs_after >= runs_before + 2 && nanoseconds_after > nanoseconds_before);
    let missed: u64 = hooks().statistics().iter().map(|program| program.missed).sum();
    println!("kernel-fact: eBPF programs left out = {missed}");
    // A kernel that preempts itself leaves programs out at times. It counts them, and trackers go by the count; any other one has no reason to.
    let preempts = std::fs::read_to_string("/sys/kernel/debug/sched/preempt")
        .is_ok_and(|models| ["(full)", "(lazy)"].iter().any(|model| models.contains(model)));
    assert!(missed == 0 || preempts, "{missed} left out");
}

#[test]
fn a_new_layout_loses_no_mark() {
    let mut vmm = Vmm::start(600);
    let mut old = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    vmm.tell("write 1");
    vmm.tell("punch 2 1");
    let mut new = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    vmm.tell("write 3");
    assert_eq!(take(&mut old), All { written: vec![one(1)], ..discarded(&[one(2)]) });
    assert_eq!(take(&mut new), written(&[one(3)]));
    // The old marks going away must not end the new track.
    drop(old);
    vmm.tell("write 4");
    vmm.tell("punch 5 1");
    assert_eq!(take(&mut new), All { written: vec![one(4)], ..discarded(&[one(5)]) });
    assert!(new.discards_quiescent());
}
