//! How long a write can have gone unnoticed: when the witnesses were last asked.
//!
//! Owns the times, never asks anybody itself. The bound is the age of the *oldest* look that the map rests on:
//!
//! - the marks of eBPF, and the second look at the pages published lately (a write whose fault began before they were armed has no mark
//!   of its own); without marks the last scan of everything;
//! - where nobody tells of discards, or of memory that is replaced, the audit, which compares the holes and looks for pages that have become zero;
//! - where nobody tells of other processes that map the RAM, discovery, which looks at all of them by turns;
//! - where writes can come unseen, the last reading of everything that has been completed, counted from its beginning.
//!
//! A page that has been noticed is stale, however long it stays so: it is not what this is about.

use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::{Tracker, layout::FOUND_AFTER};
use crate::host::Freshness;

/// When the witnesses were last asked.
#[derive(Debug)]
pub(super) struct Looks {
    marks: Instant,
    /// The marks overflowed after this, and what was lost has not been looked for yet.
    overflowed: Option<Instant>,
    recheck: Instant,
    scan: Instant,
    audit: Instant,
    /// Everything that is read again has been read since.
    read: Instant,
    /// A reading under way: since when, and what is left.
    reading: Option<(Instant, RoaringBitmap)>,
    /// Since when the marks of this rotation and of the last one wait for a scan to see their write, at most.
    waiting: [Option<Instant>; 2],
}

impl Looks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            marks: now,
            overflowed: None,
            recheck: now,
            scan: now,
            audit: now,
            read: now,
            reading: None,
            waiting: [None; 2],
        }
    }

    /// The marks have been read, from `began` on; `any`: some pages were marked.
    pub(super) fn took_marks(&mut self, began: Instant, any: bool, overflowed: bool) {
        if any {
            self.waiting[0].get_or_insert(self.marks);
        }
        if overflowed {
            self.overflowed.get_or_insert(self.marks);
        }
        self.marks = began;
    }

    pub(super) fn rotated(&mut self) {
        self.waiting = [None, self.waiting[0]];
    }

    pub(super) fn rechecked(&mut self, began: Instant) {
        self.recheck = began;
    }

    /// Everything has been scanned, from `began` on; `again`: and will be once more, because what overflowed may have been marked before it was written.
    pub(super) fn scanned_all(&mut self, began: Instant, again: bool) {
        self.scan = began;
        self.overflowed = self.overflowed.filter(|_| again).map(|_| began);
    }

    pub(super) fn audited_all(&mut self, began: Instant) {
        self.audit = began;
    }

    /// From now on these are read again. One that is under way goes on.
    pub(super) fn begin_reading(&mut self, pages: RoaringBitmap) {
        self.reading.get_or_insert((Instant::now(), pages));
    }

    pub(super) fn have_read(&mut self, pages: &RoaringBitmap) {
        if let Some((began, left)) = &mut self.reading {
            *left -= pages;
            if left.is_empty() {
                self.read = *began;
                self.reading = None;
            }
        }
    }

    /// The pages are numbered anew.
    pub(super) fn renumbered(&mut self) {
        self.reading = None;
    }

    /// Something may have written unseen ever since `since`.
    pub(super) fn distrusted(&mut self, since: Instant) {
        self.read = since;
    }

    /// When the marks were last taken.
    pub(super) fn marks_taken(&self) -> Instant {
        self.marks
    }

    pub(super) fn marks_read(&self) -> Duration {
        self.marks.elapsed()
    }

    pub(super) fn audited(&self) -> Duration {
        self.audit.elapsed()
    }
}

impl Tracker {
    /// Tells readers how fresh the map is.
    pub(super) fn note_freshness(&self) {
        let looks = &self.looks;
        let mut as_of = if self.marks_see_writes() { looks.marks.min(looks.recheck) } else { looks.scan };
        as_of = as_of.min(looks.overflowed.unwrap_or(as_of));
        if !self.told_of_discards() || !self.shared.hooks.remaps_attached() {
            as_of = as_of.min(looks.audit);
        }
        if !self.told_of_mappings() {
            let now = Instant::now();
            as_of = as_of.min(now.checked_sub(FOUND_AFTER).unwrap_or(now));
        }
        if self.doubted() || self.regions.iter().any(|watched| watched.readable() && !watched.armed()) {
            as_of = as_of.min(looks.read);
        }
        let [newer, older] = self.queue.awaits_writes();
        let oldest_mark = match looks.waiting {
            [_, since] if older => since,
            [since, _] if newer => since,
            _ => None,
        };
        self.vm.set_freshness(Freshness { as_of, oldest_mark, audited: looks.audit });
    }

    /// Begins to count a reading of all that is read again now and then.
    pub(super) fn begin_reading(&mut self) {
        let mut pages = RoaringBitmap::new();
        let doubted = self.doubted();
        for watched in self.regions.iter().filter(|watched| watched.readable()) {
            if doubted || !watched.armed() {
                pages.insert_range(watched.range());
            }
        }
        if !pages.is_empty() {
            self.looks.begin_reading(pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_counts_from_its_beginning_once_all_of_it_is_done() {
        let long_ago = Instant::now();
        let mut looks = Looks::new(long_ago);
        std::thread::sleep(Duration::from_millis(2));
        looks.begin_reading((0..10).collect());
        let (began, _) = looks.reading.clone().unwrap();
        looks.have_read(&(0..9).collect());
        looks.begin_reading((0..10).collect());
        assert_eq!(looks.read, long_ago);
        looks.have_read(&(9..20).collect());
        assert_eq!((looks.read, looks.reading.is_none()), (began, true));
    }

    #[test]
    fn what_overflowed_is_looked_for_twice() {
        let before = Instant::now();
        let mut looks = Looks::new(before);
        looks.took_marks(before, false, true);
        std::thread::sleep(Duration::from_millis(2));
        let first = Instant::now();
        looks.scanned_all(first, true);
        assert_eq!(looks.overflowed, Some(first), "the write may have come after it");
        looks.scanned_all(Instant::now(), false);
        assert_eq!(looks.overflowed, None);
    }

    #[test]
    fn a_mark_may_be_as_old_as_the_look_before_the_one_that_found_it() {
        let before = Instant::now();
        let mut looks = Looks::new(before);
        std::thread::sleep(Duration::from_millis(2));
        looks.took_marks(Instant::now(), true, false);
        looks.took_marks(Instant::now(), true, true);
        assert_eq!(looks.waiting, [Some(before), None]);
        assert!(looks.overflowed.unwrap() > before);
        looks.rotated();
        assert_eq!(looks.waiting, [None, Some(before)]);
    }
}
