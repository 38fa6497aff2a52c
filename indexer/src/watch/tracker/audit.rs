//! The audit: everything the map claims, held against the page table and the RAM file. Read-only for the guest.
//!
//! For every page shown as `current` or `zero` there must be data in the RAM file and a *protected* entry in the page table;
//! for every page shown as `absent` there must be neither data nor an unprotected entry. "Not reported as written"
//! would not be enough: a page that was written and then swapped out, or unmapped by the VMM, has no entry at all.
//! Holes are compared because punching a hole leaves the protection in place: the page table does not show it. Nor does it show that a hole has been filled again, by a read
//! or by khugepaged, which makes a huge page of what lies around it: then there is a page of zeros, protected as before. So where no eBPF program tells of discards, each page
//! with a fingerprint is looked at: by a discard it can only have become zero, and the look ends at the first byte that is not.
//! Whatever fails is stale at once. Writes that eBPF should have marked and did not are counted.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;

use super::{Lost, Tracker, digest::any_bytes, region::Watched, trouble::Trouble};
use crate::{
    map::MapSnapshot,
    memory::{MemoryError, Walk},
    units::PageRange,
    watch::{
        protocol::{self, Findings, Sighting},
        queue::runs,
    },
};

/// Pages looked at between two looks at the marks.
const WINDOW: u32 = 1 << 16;
/// Longest time between two audits, however much memory there is.
const SELDOM: Duration = Duration::from_secs(120);
/// Time from one look at the lately published pages to the next.
const RECHECK: Duration = Duration::from_millis(100);

impl Tracker {
    /// Audits all armed regions. Stale pages that are queued nowhere are queued.
    pub(super) fn audit(&mut self) -> Result<(), Lost> {
        let began = Instant::now();
        let mut found = Findings::default();
        self.regions.iter_mut().for_each(Watched::look_for_huge_pages);
        // Only this thread writes the map, so the snapshot stays true until we write ourselves.
        let snapshot = self.vm.snapshot();
        for region in 0..self.regions.len() {
            if !self.regions[region].armed() {
                continue;
            }
            let range = self.regions[region].range();
            let mut page = range.start;
            let mut walk = Walk::default();
            while page < range.end {
                let window = page..range.end.min(page.saturating_add(WINDOW));
                page = window.end;
                match self.audit_window(region, &snapshot, window, &mut walk, &mut found) {
                    Ok(()) => self.take_marks(),
                    Err(Trouble::Lost(lost)) => return Err(lost),
                    Err(Trouble::NotWatched) => {
                        self.region_not_watched(region)?;
                        break;
                    }
                    Err(Trouble::Region(error)) => {
                        tracing::debug!(vm = %self.vm.id(), %error, "could not audit a region");
                        self.stale_run(&range);
                        break;
                    }
                }
            }
        }
        // A mark that came in since the last tick is no miss.
        self.take_marks();
        if self.marks_see_writes() {
            let missed = (&found.written - self.queue.awaited()) - self.queue.in_discard();
            let missed: RoaringBitmap = missed.iter().filter(|page| !self.vm.is_stale(*page)).collect();
            if !missed.is_empty() {
                tracing::debug!(vm = %self.vm.id(), pages = missed.len(), first = missed.min(), "written without a mark");
                self.vm.counters.missed_by_ebpf.add(missed.len());
            }
        }
        self.note_written(&found.written);
        let newly = protocol::audited(
            &mut self.vm.map_mut(),
            &mut self.queue,
            &found,
            |mut forgotten: RoaringBitmap| {
                for watched in self.regions.iter().filter(|watched| !watched.readable()) {
                    forgotten.remove_range(watched.range());
                }
                forgotten
            },
        );
        self.vm.counters.pages_gone_stale.add(newly);
        self.vm.counters.audits.add(1);
        self.looks.audited_all(began);
        self.audit_cost = began.elapsed();
        Ok(())
    }

    fn audit_window(
        &self,
        region: usize,
        snapshot: &MapSnapshot,
        window: Range<u32>,
        walk: &mut Walk,
        found: &mut Findings,
    ) -> Result<(), Trouble> {
        let watched = &self.regions[region];
        let Some(memory) = &watched.memory else { return Ok(()) };
        let mut seen = Sighting::default();
        self.sighted(region, &window, &mut seen.armed, &mut seen.open)?;
        let mut data = Vec::new();
        memory.data_along(&self.pagemap, watched.relative(&window), walk, &mut data)?;
        for run in data {
            seen.data.insert_range(watched.first_page + run.start..watched.first_page + run.end);
        }
        if !self.told_of_discards() {
            seen.zero = self.zero_pages(
                region,
                &(snapshot.in_state(window.clone(), &[PageState::Current]) & &seen.data),
            )?;
        }
        found.compare(snapshot, window, &seen);
        Ok(())
    }

    /// Those of `pages`, which lie in one region and are no holes, that are all zero.
    pub(super) fn zero_pages(
        &self,
        region: usize,
        pages: &RoaringBitmap,
    ) -> Result<RoaringBitmap, MemoryError> {
        let watched = &self.regions[region];
        let Some(memory) = &watched.memory else { return Ok(RoaringBitmap::new()) };
        let relative: Vec<_> = runs(pages).map(|run| watched.relative(&run)).collect();
        let any = any_bytes(&self.shared.pool, memory, &relative)?;
        Ok(pages.iter().zip(any).filter(|(_, any)| !any).map(|(page, _)| page).collect())
    }

    /// How long to wait from one audit to the next: seldom enough to cost next to nothing.
    pub(super) fn audit_interval(&self) -> Duration {
        self.options.audit.max((self.audit_cost * 500).min(SELDOM))
    }

    /// Scans for written pages: what is awaited, now and then what was published lately; everything if eBPF does not say
    /// what is written.
    pub(super) fn scan(&mut self, last_chance: bool) -> Result<(), Lost> {
        // Seldom enough to cost a few per cent of a core: during the first pass nearly every page is recent.
        let recheck = last_chance || self.last_recheck.elapsed() >= RECHECK.max(self.recheck_cost * 20);
        let steered = protocol::steered(&self.queue, recheck);
        // A guest whose writes overflow the marks all the time must not make us scan all the time.
        let wanted = self.full_scan.wanted() || !self.marks_see_writes();
        let full = wanted && self.last_full_scan.elapsed() >= self.scan_interval();
        let began = Instant::now();
        for region in 0..self.regions.len() {
            if !self.regions[region].armed() {
                continue;
            }
            let range = self.regions[region].range();
            let pages = if full {
                let mut all = RoaringBitmap::new();
                all.insert_range(range.clone());
                all
            } else {
                let mut pages = steered.clone();
                pages.remove_range(..range.start);
                pages.remove_range(range.end..);
                self.regions[region].with_huge_pages(pages)
            };
            let mut written = RoaringBitmap::new();
            let mut scanned = self.scan_written(region, &pages, &mut written);
            if recheck
                && scanned.is_ok()
                && let Ok(protection) = &self.protection
            {
                // The VMM may map something else there at any time, and where nothing is scanned nothing says so.
                scanned = protection.watched(&self.pagemap, self.regions[region].addresses(&range));
            }
            if pages.is_empty() && scanned.is_ok() {
                continue;
            }
            match scanned.map_err(Trouble::from) {
                Ok(()) => {}
                Err(Trouble::Lost(lost)) => return Err(lost),
                Err(_) => {
                    self.region_not_watched(region)?;
                    continue;
                }
            }
            if !written.is_empty() {
                self.note_written(&written);
                let newly = protocol::found_written(&mut self.vm.map_mut(), &mut self.queue, &written);
                self.vm.counters.pages_gone_stale.add(newly);
            }
        }
        if recheck {
            self.looks.rechecked(began);
            self.recheck_cost = began.elapsed();
            self.last_recheck = Instant::now();
        }
        if full {
            self.full_scan.done();
            self.looks.scanned_all(began, self.full_scan.to_come());
            self.full_scan_cost = began.elapsed();
            self.last_full_scan = Instant::now();
        }
        Ok(())
    }

    /// Without eBPF: often enough to be useful, seldom enough to cost a few per cent of a core at most.
    pub(super) fn scan_interval(&self) -> Duration {
        self.options.scan.max(self.full_scan_cost * 20)
    }

    /// Marks a run of pages as stale in the map.
    pub(super) fn stale_run(&mut self, run: &PageRange) {
        let newly = protocol::stale_run(&mut self.vm.map_mut(), run);
        self.vm.counters.pages_gone_stale.add(newly);
    }

    /// The same for a set.
    pub(super) fn stale(&mut self, pages: &RoaringBitmap) {
        if !pages.is_empty() {
            let newly = protocol::stale(&mut self.vm.map_mut(), pages);
            self.vm.counters.pages_gone_stale.add(newly);
        }
    }
}
