//! The eBPF programs on the running kernel: loaded, attached, and watching a real process that writes and discards memory.
//!
//! Each module has the name of the program it tests. They need root, as the programs do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![expect(clippy::single_range_in_vec_init, reason = "a list of runs may well hold one run")]

mod discard;
mod kvm_dirty_ring_push;
mod kvm_page_fault;
mod marks;
mod memslots;
mod page_fault_kernel;
mod page_fault_user;
mod soft_dirty;
mod vmm;

use std::{ops::Range, sync::OnceLock};

use indexer::{
    units::Hva,
    watch::ebpf::{HookOptions, Hooks, MarkLayout, MarkRegion, Marks, RamFile, Taken},
};
use vmm::Vmm;

/// The hooks, loaded once: what a daemon has.
fn hooks() -> &'static Hooks {
    static HOOKS: OnceLock<Hooks> = OnceLock::new();
    HOOKS.get_or_init(|| {
        let hooks = Hooks::load(&HookOptions { debug: true, ..HookOptions::default() });
        for status in hooks.status() {
            assert!(status.attached, "{}: {:?}", status.name, status.reason);
        }
        hooks
    })
}

/// The layout of a child whose RAM file is one region.
fn layout(vmm: &Vmm) -> MarkLayout {
    let ram = vmm.ram;
    MarkLayout {
        regions: vec![MarkRegion {
            start: Hva(ram.address),
            len: u64::from(ram.pages) * 4096,
            first_page: 0,
            file: Some(RamFile { device: ram.device, inode: ram.inode, offset: 0 }),
        }],
        memslots: Vec::new(),
        pages: ram.pages,
    }
}

/// The same with the memory slots the VMM has set.
fn layout_with_slots(vmm: &Vmm) -> MarkLayout {
    let vms = hooks().memslots().unwrap();
    let memslots = vms.into_iter().find(|vm| vm.pid == vmm.pid()).unwrap().slots;
    MarkLayout { memslots, ..layout(vmm) }
}

/// Whether exactly the pages the guest writes were marked, in memory that begins at page `first`. The page of its code may be among them: KVM maps
/// a page for writing as soon as it can be written, and reports it as dirty then.
fn guest_wrote(all: &All, first: u32) -> bool {
    let expected = first + vmm::GUEST_WRITES.start..first + vmm::GUEST_WRITES.end;
    let rest: Vec<_> = all.written.iter().filter(|run| **run != one(first)).cloned().collect();
    rest == [expected] && all.discarded.is_empty() && all.taken == Taken::default()
}

/// Everything one call of `take` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct All {
    written: Vec<Range<u32>>,
    discarded: Vec<Range<u32>>,
    taken: Taken,
}

fn take(marks: &mut Marks) -> All {
    let mut all = All::default();
    all.taken = marks.take(&mut all.written, &mut all.discarded);
    all
}

fn written(runs: &[Range<u32>]) -> All {
    All { written: runs.to_vec(), ..All::default() }
}

fn discarded(runs: &[Range<u32>]) -> All {
    All { discarded: runs.to_vec(), ..All::default() }
}

fn one(page: u32) -> Range<u32> {
    page..page + 1
}

/// The first write to a page by a command of the VMM marks that page and no other; further ones and reads mark nothing.
fn a_first_write_marks_its_page(verb: &str) {
    let mut vmm = Vmm::start(2000);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    assert_eq!(take(&mut marks), All::default());
    for page in [7, 8, 1023, 1999] {
        vmm.tell(&format!("{verb} {page}"));
    }
    assert!(marks.any(1999..2000) && marks.any(0..8) && !marks.any(9..1023));
    assert_eq!(take(&mut marks), written(&[7..9, one(1023), one(1999)]));
    assert_eq!(take(&mut marks), All::default(), "a mark is taken once");
    assert!(!marks.any(0..2000));

    // The pages are writable now: no fault, no mark. Reads make none either.
    for page in [7, 8] {
        vmm.tell(&format!("{verb} {page}"));
    }
    vmm.tell("read 100");
    assert_eq!(take(&mut marks), All::default());
}
