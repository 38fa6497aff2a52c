//! Reading unsettled pages once more; see [`crate::watch::unsettled`] for why and when.
//!
//! Owns the judgement. A page whose time has come is read while it is armed, and then the marks and a read-only scan say, as for a verify, whether it has been
//! written since. If it has, it is stale like any page that is written. If it has not and reads the same, it is settled. If it has not and reads
//! differently, a request arrived late: the page is stale, and armed and read anew.

use std::{sync::Arc, time::Instant};

use roaring::RoaringBitmap;

use super::{Lost, Tracker, digest::digest};
use crate::watch::queue::runs;

/// Pages read once more before the marks are looked at again.
const BATCH: u32 = 4096;

impl Tracker {
    /// With every tick: what discovery found out about direct I/O, and the time.
    pub(super) fn tick_unsettled(&mut self) {
        let now = Instant::now();
        let mistaken = self.unsettled.note(self.vm.direct_io_looks(), now);
        if !mistaken.is_empty() {
            self.set_settled(&mistaken, false);
        }
        self.unsettled.advance(now);
        self.note_direct_io();
    }

    /// Whether pages of this region that are published now are settled at once. Where something else can write the memory unseen, or nothing watches
    /// it, pages are read again and again anyway.
    pub(super) fn settles_at_once(&self, region: usize) -> bool {
        self.unsettled.at_once() || !self.may_unsettle(region)
    }

    /// Keeps in mind when these were published.
    pub(super) fn note_published(&mut self, region: usize, pages: &RoaringBitmap) {
        if self.may_unsettle(region) {
            for run in runs(pages) {
                self.unsettled.published(run);
            }
        }
    }

    fn may_unsettle(&self, region: usize) -> bool {
        self.regions[region].armed() && !self.doubted()
    }

    /// Reads a batch of the pages whose time has come. Returns whether there were any.
    pub(super) fn settle_due(&mut self) -> Result<bool, Lost> {
        if !self.unsettled.has_due() {
            for waiting in self.await_settling.drain(..) {
                let _ = waiting.send(Ok(()));
            }
            return Ok(false);
        }
        let batch = self.unsettled.take(BATCH);
        let (batch, rest) = self.of_one_region(batch);
        self.unsettled.put_back(&rest);
        self.read_once_more(&batch)?;
        Ok(true)
    }

    /// The pages of the region that the first one is in, and all others.
    pub(super) fn of_one_region(&self, mut pages: RoaringBitmap) -> (RoaringBitmap, RoaringBitmap) {
        let mut rest = RoaringBitmap::new();
        if let Some(first) = pages.min() {
            let end = self.regions[self.region_of(first)].range().end;
            rest = pages.clone();
            rest.remove_range(..end);
            pages.remove_range(end..);
        }
        (pages, rest)
    }

    /// Reads those of `pages`, which lie in one region, that are unsettled, and settles what has not changed. Returns the pages it has found to
    /// be different; they are stale and queued.
    pub(super) fn read_once_more(&mut self, pages: &RoaringBitmap) -> Result<RoaringBitmap, Lost> {
        let nothing = RoaringBitmap::new();
        self.take_marks();
        let (Some(first), Some(last)) = (pages.min(), pages.max()) else { return Ok(nothing) };
        let region = self.region_of(first);
        let snapshot = self.vm.snapshot();
        let pages = pages & snapshot.unsettled(first..last + 1);
        if pages.is_empty() {
            return Ok(nothing);
        }
        drop(snapshot);
        let known: Vec<_> = {
            let map = self.vm.map();
            pages.iter().map(|page| (page, map.page(page))).collect()
        };
        let shared = Arc::clone(&self.shared);
        let differing = self.differing(region, &known, |memory, data| digest(&shared.pool, memory, data))?;
        let differing: Option<RoaringBitmap> =
            differing.map(|differing| differing.iter().map(|differing| differing.page).collect());
        let Some(differing) = differing.filter(|_| self.regions[region].armed()) else {
            // They cannot be read, or not judged. Why, the next attempt at reading them finds out.
            self.stale(&pages);
            self.queue.ready(&pages);
            return Ok(pages);
        };
        self.vm.counters.pages_read.add(pages.len());

        // Not before the bytes have been read: who was written by now is not judged.
        let mut written = RoaringBitmap::new();
        if self.scan_written(region, &pages, &mut written).is_err() {
            self.region_not_watched(region)?;
            return Ok(nothing);
        }
        self.note_written(&written);
        self.take_marks();
        let stale: RoaringBitmap = pages.iter().filter(|page| self.vm.is_stale(*page)).collect();
        let written = (written & &pages) - &stale;
        self.stale(&written);
        self.queue.written(&written);

        let judged = (pages - &stale) - &written;
        let late = &judged & &differing;
        self.set_settled(&(judged - &late), true);
        if !late.is_empty() {
            self.vm.counters.direct_io_late.add(late.len());
            tracing::debug!(
                vm = %self.vm.id(), pages = late.len(), first = late.min(),
                "direct I/O arrived after these pages had been read; reading them anew"
            );
            self.stale(&late);
            self.queue.ready(&late);
        }
        Ok(late | stale | written)
    }

    /// In the map: these are settled from now on, or not.
    pub(super) fn set_settled(&self, pages: &RoaringBitmap, settled: bool) {
        let runs: Vec<_> = runs(pages).collect();
        self.vm.map_mut().set_settled(&runs, settled);
    }
}
