//! Arming everything at once, where soft-dirty bits are the witness; see [`crate::watch::softdirty`] for why it is sound.
//!
//! Owns when it is done and which pages cannot be read before it is done again. With a userfaultfd, which arms page by page, none of this has any effect.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;

use super::{Lost, Tracker, trouble::Trouble};
use crate::{
    units::PageRange,
    vm::descriptor::Backing,
    watch::{ebpf::Quiet, pagemap::ScanError, protection::Protection, protocol},
};

/// Shortest time from one round to the next, unless somebody waits for a sync.
const ROUND: Duration = Duration::from_millis(500);
/// Attempts at a moment in which no page of the host is being migrated.
const ATTEMPTS: usize = 3;

/// Which pages are armed, and what arming costs.
#[derive(Debug)]
pub(super) struct Whole {
    /// Not armed: marked, or seen written, since everything was armed, or never armed.
    spent: RoaringBitmap,
    last: Option<Instant>,
    /// What the last round cost us and may have cost the guest.
    cost: Duration,
    cleared_by_others: u64,
}

impl Whole {
    pub(super) fn new(cleared_by_others: u64) -> Self {
        Self { spent: RoaringBitmap::new(), last: None, cost: Duration::ZERO, cleared_by_others }
    }

    /// These are writable.
    pub(super) fn spend(&mut self, pages: &RoaringBitmap) {
        self.spent |= pages;
    }

    /// The same for runs.
    pub(super) fn spend_runs(&mut self, runs: &[PageRange]) {
        for run in runs {
            self.spent.insert_range(run.clone());
        }
    }

    /// Pages are numbered anew from this one on.
    pub(super) fn forget_from(&mut self, page: u32) {
        self.spent.remove_range(page..);
    }

    fn due(&self, budget_ppm: u64) -> bool {
        // What a round costs is what the guest may pay until the next one.
        let pause = u32::try_from(1_000_000 / budget_ppm.clamp(1, 1_000_000)).unwrap_or(u32::MAX);
        self.last.is_none_or(|last| last.elapsed() >= ROUND.max(self.cost.saturating_mul(pause)))
    }
}

impl Tracker {
    /// Whether everything is armed at once.
    pub(super) fn arms_whole(&self) -> bool {
        self.protection.as_ref().is_ok_and(|protection| protection.soft_dirty().is_some())
    }

    /// Those of `pages`, which lie in one region, that cannot be read before everything is armed once more.
    pub(super) fn spent(&self, pages: &RoaringBitmap) -> RoaringBitmap {
        let watched = pages.min().map(|page| &self.regions[self.region_of(page)]);
        if !self.arms_whole() || watched.is_none_or(|watched| !watched.armed()) {
            return RoaringBitmap::new();
        }
        pages & &self.whole.spent
    }

    /// Whether soft-dirty bits are used and their other half is missing: nobody marks this VM's faults.
    pub(super) fn half_blind(&self) -> bool {
        self.arms_whole() && self.marks.as_ref().is_none_or(|marks| !marks.know_all_addresses())
    }

    /// With every tick: a round, if pages wait for it and it is not too soon.
    pub(super) fn arm_whole_when_due(&mut self) -> Result<(), Lost> {
        if self.arms_whole() && self.queue.awaits_arming() && self.whole.due(self.cost.budget_ppm()) {
            self.arm_whole()?;
        }
        Ok(())
    }

    /// Arms everything. False if pages of the host were being migrated all the time, so that nothing new is armed. To be called only when no
    /// batch is under way.
    pub(super) fn arm_whole(&mut self) -> Result<bool, Lost> {
        if !self.arms_whole() {
            return Ok(true);
        }
        for _ in 0..ATTEMPTS {
            if self.round()? {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        tracing::debug!(vm = %self.vm.id(), "pages are being migrated on this host; arming is tried again");
        Ok(false)
    }

    /// Marks → scan → clear → marks; in this order and in no other.
    fn round(&mut self) -> Result<bool, Lost> {
        let began = Instant::now();
        self.take_marks();
        self.scan_whole()?;
        let Ok(Protection::SoftDirty(bits, _)) = &self.protection else { return Ok(true) };
        let quiet: Option<Quiet> = self.shared.hooks.migrations_quiet();
        bits.clear()?;
        let quiet = quiet.is_some_and(|quiet| self.shared.hooks.still_quiet(quiet));
        let cost = began.elapsed();
        // At most all that is in memory is used again by the guest.
        let mut armed = RoaringBitmap::new();
        for watched in self.regions.iter().filter(|watched| watched.armed()) {
            armed.insert_range(watched.range());
        }
        self.whole.cost = cost + self.cost.armed_whole(&armed, bits.resident(), Instant::now());
        self.whole.last = Some(Instant::now());
        self.whole.spent = if quiet {
            RoaringBitmap::new()
        } else {
            self.vm.map().in_state(0..u32::MAX, &[PageState::Stale])
        };
        self.vm.counters.whole_armed.add(1);
        self.vm.counters.whole_armed_microseconds.add(cost.as_micros() as u64);
        for region in 0..self.regions.len() {
            self.still_mapped(region)?;
        }
        // What was marked meanwhile was written before or after the clearing: nobody knows.
        self.take_marks();
        if quiet {
            self.queue.all_armed();
        }
        self.note_others();
        Ok(quiet)
    }

    /// Everything that has been written is stale.
    fn scan_whole(&mut self) -> Result<(), Lost> {
        for region in 0..self.regions.len() {
            if !self.regions[region].armed() {
                continue;
            }
            let range = self.regions[region].range();
            let mut all = RoaringBitmap::new();
            all.insert_range(range);
            let mut written = RoaringBitmap::new();
            match self.scan_written(region, &all, &mut written).map_err(Trouble::from) {
                Ok(()) => {
                    let newly = protocol::found_written(&mut self.vm.map_mut(), &mut self.queue, &written);
                    self.vm.counters.pages_gone_stale.add(newly);
                }
                Err(Trouble::Lost(lost)) => return Err(lost),
                Err(_) => self.region_not_watched(region)?,
            }
        }
        Ok(())
    }

    /// After a clearing: what is mapped in the region has to be what was, and in anonymous memory what is known has to be there still. A mapping
    /// that was made just before the clearing shows nothing else.
    fn still_mapped(&mut self, region: usize) -> Result<(), Lost> {
        let watched = &self.regions[region];
        let Ok(protection) = &self.protection else { return Ok(()) };
        if !watched.armed() {
            return Ok(());
        }
        let range = watched.range();
        let addresses = watched.addresses(&range);
        let mut gone = RoaringBitmap::new();
        let outcome = protection.watched(&self.pagemap, addresses).and_then(|()| {
            if let Backing::Anonymous = watched.region.backing {
                let (mut armed, mut open) = (RoaringBitmap::new(), RoaringBitmap::new());
                self.sighted(region, &range, &mut armed, &mut open)?;
                let known = self.vm.map().in_state(range, &[PageState::Current, PageState::Zero]);
                gone = (known - armed) - open;
            }
            Ok(())
        });
        match outcome.map_err(Trouble::from) {
            Ok(()) => {
                self.stale(&gone);
                self.queue.ready(&gone);
                Ok(())
            }
            Err(Trouble::Lost(lost)) => Err(lost),
            Err(_) => self.region_not_watched(region),
        }
    }

    /// Somebody else who clears bits takes a witness from us.
    fn note_others(&mut self) {
        let now = self.shared.hooks.cleared_by_others();
        let before = std::mem::replace(&mut self.whole.cleared_by_others, now);
        if now > before {
            self.vm.counters.cleared_by_others.add(now - before);
            tracing::info!(
                vm = %self.vm.id(), times = now - before,
                "another program clears soft-dirty bits on this host (CRIU?); if they are this VM's, eBPF marks alone tell of its writes until \
                 the next round"
            );
        }
    }

    /// Adds to `armed` the pages of a run that are protected, and to `open` those that are not. Read-only.
    pub(super) fn sighted(
        &self,
        region: usize,
        run: &Range<u32>,
        armed: &mut RoaringBitmap,
        open: &mut RoaringBitmap,
    ) -> Result<(), ScanError> {
        let watched = &self.regions[region];
        let addresses = watched.addresses(run);
        self.vm.counters.scan_calls.add(1);
        self.vm.counters.pages_scanned.add(u64::from(run.end - run.start));
        if self.arms_whole() && matches!(watched.region.backing, Backing::SharedFile { .. }) {
            // A page without an entry takes a fault before it can be written, and the bits say so: it is protected like the others.
            let mut written = Vec::new();
            self.pagemap.written(addresses, &mut written)?;
            let mut unprotected = RoaringBitmap::new();
            for addresses in &written {
                unprotected.insert_range(watched.pages_at(addresses));
            }
            armed.insert_range(run.clone());
            *armed -= &unprotected;
            *open |= unprotected;
            return Ok(());
        }
        let mut found = Vec::new();
        self.pagemap.populated(addresses, true, &mut found)?;
        for run in found {
            let set = if run.armed { &mut *armed } else { &mut *open };
            set.insert_range(watched.pages_at(&run.range));
        }
        Ok(())
    }
}
