//! What the guest pays: telling the [account](crate::watch::cost) what was done, and asking it what may be done.

use std::time::Instant;

use roaring::RoaringBitmap;

use super::Tracker;
use crate::{
    host::{GuestShare, Shared},
    units::PageRange,
    vm::descriptor::VmDescriptor,
    watch::{
        cost::{GuestCost, Kind},
        protection::Protection,
    },
};

/// The account of a VM that has just been attached to.
pub(super) fn begin_to_pay(
    shared: &Shared,
    descriptor: &VmDescriptor,
    protection: Option<&Protection>,
    now: Instant,
) -> GuestCost {
    let prices = shared.prices.of(descriptor.accelerator);
    let mut cost = GuestCost::new(prices, shared.options.tracker.guest_budget_ppm, now);
    if let Some(protection) = protection {
        note_stop(&mut cost, protection, now);
    }
    cost
}

/// Attaching may have stopped a thread of the VMM.
pub(super) fn note_stop(cost: &mut GuestCost, protection: &Protection, now: Instant) {
    if let Protection::UserFault(userfault) = protection {
        cost.stopped(userfault.report().stopped, now);
    }
}

impl Tracker {
    /// These have been armed, each run by one call.
    pub(super) fn note_armed(&mut self, data: &[PageRange]) {
        self.cost.armed(data, Instant::now());
    }

    /// A witness saw these written: those that were armed took a fault for it.
    pub(super) fn note_written(&mut self, pages: &RoaringBitmap) {
        let faults = self.cost.seen_written(pages, Instant::now());
        self.vm.counters.guest_faults.add(faults);
    }

    /// Those of `pages` that may be armed now. The others stay writable until their turn comes; whoever waits already comes first.
    pub(super) fn within_budget(&mut self, pages: RoaringBitmap) -> RoaringBitmap {
        let mut purse = self.cost.purse(Instant::now());
        if self.vm.hurried.is_so() || purse.free(&pages) {
            return pages;
        }
        let released = self.queue.held().take_approved(&pages);
        // Released, and not paid for before they are armed.
        purse.afford(self.queue.held().approved(), Kind::Quiet);
        purse.afford(&released, Kind::Quiet);
        let mut granted = purse.first_time(&pages) | released;
        let asking = &pages - &granted;
        let hot = self.queue.heated(&asking);
        for (kind, asking) in [(Kind::Quiet, &asking - &hot), (Kind::Hot, hot)] {
            let may = if self.queue.held().holds(kind) {
                RoaringBitmap::new()
            } else {
                purse.afford(&asking, kind)
            };
            let held = asking - &may;
            self.vm.counters.arming_held.add(held.len());
            self.queue.held().hold(&held, kind);
            granted |= may;
        }
        granted
    }

    /// With every tick: whose turn has come, and what people are told.
    pub(super) fn tick_budget(&mut self) {
        let now = Instant::now();
        let mut purse = self.cost.purse(now);
        let hurried = self.vm.hurried.is_so();
        let afford = |pages: &RoaringBitmap, kind| {
            if hurried { pages.clone() } else { purse.afford(pages, kind) }
        };
        let released = self.queue.held().release(afford);
        self.queue.ready(&released);
        self.vm.set_guest_share(GuestShare {
            paid_ppm: self.cost.paid_ppm(now),
            budget_ppm: self.cost.budget_ppm(),
        });
    }

    /// The pages of these runs, as eBPF marked them, took a fault.
    pub(super) fn note_marked(&mut self, marked: &[PageRange]) {
        if !marked.is_empty() {
            let mut pages = RoaringBitmap::new();
            for run in marked {
                pages.insert_range(run.clone());
            }
            self.note_written(&pages);
        }
    }

    /// Something else is mapped here: nothing is armed any more.
    pub(super) fn note_mapped_anew(&mut self, pages: PageRange) {
        self.cost.forget(pages);
    }
}
