//! The regions of a VM come and go: numbering their pages, keeping what stays the same.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::event::Event;
use roaring::RoaringBitmap;

use super::{Tracker, attach_protection, check::Distrust, pay::note_stop, region::Watched};
use crate::{host::JobError, map::Layout, vm::descriptor::VmDescriptor, watch::protocol};

/// A doubt is found by discovery within this time of its beginning: what other processes map is looked at by turns. (Where eBPF sees them
/// do it, at once.)
pub(super) const FOUND_AFTER: Duration = Duration::from_secs(10);

impl Tracker {
    /// Discovery found the VM changed: keep what is the same, begin anew with the rest.
    pub(super) fn changed(&mut self, descriptor: Arc<VmDescriptor>) {
        let same = self
            .regions
            .iter()
            .zip(&descriptor.regions)
            .take_while(|(old, new)| old.region == **new && old.readable())
            .count();
        let relaid = same < self.regions.len() || same < descriptor.regions.len();
        let slots = self.descriptor.memslots != descriptor.memslots;
        let doubted = !self.descriptor.doubts.is_empty();
        let cleared = doubted && descriptor.doubts.is_empty();
        let begun = !doubted && !descriptor.doubts.is_empty();
        if begun {
            // It may have begun right after discovery looked last.
            let now = Instant::now();
            self.looks.distrusted(now.checked_sub(FOUND_AFTER).unwrap_or(now));
            if self.distrust.as_ref().is_some_and(Distrust::is_recent) {
                tracing::warn!(vm = %self.vm.id(), doubts = descriptor.doubts.join("; "), "this explains the pages that changed unseen");
                self.distrust = None;
            }
        }
        self.descriptor = descriptor;
        if begun || cleared {
            // What is written unseen while there is doubt is not found by any witness, neither now nor afterwards.
            self.know_nothing();
        }
        if relaid {
            self.abandon_jobs(JobError::Changed);
            self.lay_out(same);
            self.shared.announce(Event::LayoutChanged {
                vm: self.vm.id().to_owned(),
                pages: u64::from(self.vm.map().pages()),
            });
        } else if slots {
            self.watch_marks();
        }
        self.update_status();
    }

    /// Whether something can write the guest's memory unseen: discovery knows of another process that maps it, or a device; or pages have
    /// changed and no witness saw the write; or one of two witnesses that need each other is missing.
    pub(super) fn doubted(&self) -> bool {
        self.explained() || self.distrust.is_some() || self.half_blind()
    }

    /// Whether somebody is known who can write the guest's memory unseen: by discovery, or by eBPF a moment ago.
    pub(super) fn explained(&self) -> bool {
        !self.descriptor.doubts.is_empty() || self.mapped_lately()
    }

    /// Queues every readable page that is queued nowhere. One that is not stale becomes so when its turn has come, so that the
    /// map stays usable meanwhile.
    pub(super) fn read_again(&mut self) {
        let mut pages = RoaringBitmap::new();
        for watched in self.regions.iter().filter(|watched| watched.readable()) {
            pages.insert_range(watched.range());
        }
        pages -= self.queue.all();
        self.queue.ready(&pages);
    }

    /// Tries once more what did not work: another daemon or a debugger may have let go of the VMM, memory may be readable again.
    pub(super) fn try_again(&mut self) {
        if self.protection.is_err() {
            // Ours would stand in the way of the new one.
            self.claim = None;
            (self.claim, self.protection) = attach_protection(self.process, &self.shared);
            if let Ok(protection) = &self.protection {
                note_stop(&mut self.cost, protection, Instant::now());
            }
        }
        let mut better = false;
        for index in 0..self.regions.len() {
            let watched = &self.regions[index];
            if watched.armed() || (watched.readable() && self.protection.is_err()) {
                continue;
            }
            let protection = self.protection.as_ref().map_err(String::as_str);
            let mut again =
                Watched::open(self.process, watched.region.clone(), watched.first_page, protection);
            if again.watch == watched.watch {
                continue;
            }
            again.epoch = watched.epoch + 1;
            better |= again.readable();
            let range = again.range();
            self.whole.spend_runs(std::slice::from_ref(&range));
            self.regions[index] = again;
            self.note_mapped_anew(range.clone());
            // A discard may be on its way, as after any change of the layout.
            self.may_be_discarded(range);
        }
        if better {
            tracing::info!(vm = %self.vm.id(), "what did not work before does now");
            self.full_scan.want();
            self.share_memory();
        }
        self.update_status();
        // The userfaultfd may be another one.
        self.seal();
    }

    /// Opens all regions from the `keep`-th on and numbers their pages.
    pub(super) fn lay_out(&mut self, keep: usize) {
        if let Ok(protection) = &self.protection {
            for gone in self.regions.iter().skip(keep).filter(|gone| gone.armed()) {
                // The mapping may be gone with its registration; then there is nothing to undo.
                let _ = protection.unregister(gone.region.start..gone.region.end());
            }
        }
        self.regions.truncate(keep);
        let layout = Arc::new(Layout::of(&self.descriptor.regions));
        let kept = self.regions.last().map_or(0, |last| last.range().end);
        for (region, place) in self.descriptor.regions.iter().zip(layout.regions()).skip(keep) {
            let protection = self.protection.as_ref().map_err(String::as_str);
            self.regions.push(Watched::open(self.process, region.clone(), place.first_page, protection));
        }
        let pages = layout.pages();
        let changes = protocol::renumber(&mut self.vm.map_mut(), &mut self.queue, layout, kept);
        self.follow(&changes);
        if self.unseen.is_empty() {
            self.pass_began = Instant::now();
        }
        self.unseen.remove_range(kept..);
        self.unseen.insert_range(kept..pages);
        for unreadable in self.regions.iter().filter(|watched| !watched.readable()) {
            self.unseen.remove_range(unreadable.range());
        }
        self.looks.renumbered();
        self.history.forget();
        self.note_mapped_anew(kept..u32::MAX);
        self.unsettled.forget_from(kept);
        self.whole.forget_from(kept);
        self.whole.spend_runs(std::slice::from_ref(&(kept..pages)));
        self.pushed.remove_range(kept..);
        self.watch_marks();
        protocol::renumbered(&self.vm.map(), &mut self.queue, kept);
        self.full_scan.want();
        self.update_status();
        self.share_memory();
        self.seal();
    }

    /// Lets readers of content at the regions as they are now.
    pub(super) fn share_memory(&self) {
        let memory = self.regions.iter().filter_map(|watched| {
            let memory = watched.memory.clone().filter(|_| watched.readable())?;
            Some((watched.range(), memory))
        });
        self.vm.set_memory(memory.collect());
    }

    pub(super) fn region_of(&self, page: u32) -> usize {
        let after = self.regions.partition_point(|region| region.first_page <= page);
        after.saturating_sub(1)
    }
}
