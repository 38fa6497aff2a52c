//! KVM's dirty ring where there is no write protection: a VMM that has it on and logs lets KVM arm pages.
//!
//! A push into the ring says that the guest has written a page (or, with hardware that logs writes by itself, Intel's PML, that it wrote
//! it since the last exit: there a mark comes *after* its write, by the time from one exit to the next). From then on KVM lets the guest
//! write that page unseen, until the VMM takes the entry out and resets it; the reset is what arms. So a page that was pushed is stale and
//! read once soon, and again after the reset that follows its push.
//!
//! This makes the guest's own writes known at once. It makes nothing exact: what the VMM writes by itself (device emulation) and what the
//! kernel writes for it never passes KVM, and is found only by reading again. So regions stay advisory, and say which part is seen.

use roaring::RoaringBitmap;

use super::Tracker;
use crate::{
    units::PageRange,
    watch::{protocol, queue::runs},
};

/// `KVM_MEM_LOG_DIRTY_PAGES` of `linux/kvm.h`.
const LOGGED: u32 = 1;

/// What the ring is good for, if a VMM has it on.
pub(super) const LIMITS: &str = "what the guest writes is noticed at once, from KVM's dirty ring, what its VMM or the kernel writes only then";

impl Tracker {
    /// Whether KVM's dirty ring tells of the guest's writes; if not, why. `None` if the VMM has none.
    pub(super) fn dirty_ring(&self) -> Option<Result<(), String>> {
        if !self.descriptor.dirty_ring {
            return None;
        }
        let logged = |slot: &crate::vm::descriptor::Memslot| !slot.writable() || slot.flags & LOGGED != 0;
        Some(
            if let Some(reason) =
                self.shared.hooks.dirty_ring_missing().or_else(|| self.marks_missing.clone())
            {
                Err(reason)
            } else if self.descriptor.memslots.is_empty() || !self.descriptor.memslots.iter().all(logged) {
                Err("the VMM has the ring on, but does not log all of the memory: QEMU does so only while it measures or migrates".to_owned())
            } else {
                Ok(())
            },
        )
    }

    /// Follows what was marked in memory without write protection. `reset`: the ring was emptied since the last look.
    pub(super) fn follow_ring(&mut self, written: &[PageRange], reset: bool) {
        let mut fresh = RoaringBitmap::new();
        for watched in self.regions.iter().filter(|watched| watched.readable() && !watched.armed()) {
            let range = watched.range();
            for run in written {
                let (start, end) = (run.start.max(range.start), run.end.min(range.end));
                if start < end {
                    fresh.insert_range(start..end);
                }
            }
        }
        if !reset {
            self.pushed |= fresh;
            return;
        }
        // Some of `fresh` was pushed after the reset: the next one is waited for as well.
        let armed = std::mem::replace(&mut self.pushed, fresh.clone()) | fresh;
        let mut armed: Vec<PageRange> = runs(&armed).collect();
        // As if marked now: they are not read before a rotation has passed, when the processors have long dropped the old translations.
        let noted = protocol::marked(&mut self.vm.map_mut(), &mut self.queue, &mut armed, &mut []);
        self.vm.counters.pages_gone_stale.add(noted.newly_stale);
    }
}
