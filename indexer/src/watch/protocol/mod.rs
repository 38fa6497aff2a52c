//! What follows from what was seen: the decisions of the tracker, without a clock, a kernel or a lock.
//!
//! Owns what a mark, a scan, an audit, a remapped region and a batch that was read do to the map and to the queue. Never
//! looks at memory or page tables itself and never decides when to look: that is the [tracker](super::tracker)'s part. Because nothing
//! in here needs a VMM, the same code is driven twice: by the tracker against the kernel, and by `watch/model` against
//! a kernel of a few bits, in every order of events that there is.
//!
//! The order *arm, read, check, publish* is in the types of [`batch`]: there is nothing to publish before it was checked, nothing to
//! check before it was read, and a batch says which mapping it was armed in.

mod batch;
mod inherited;

use std::ops::Range;

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;

#[cfg(test)]
pub(super) use self::batch::Hashed;
pub(super) use self::{
    batch::{Armed, Batch, Fresh},
    inherited::{Inherited, confirm},
};
use super::queue::{Queue, runs};
use crate::{
    map::{Change, Layout, PageMap},
    units::PageRange,
};

/// What taking the marks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    pub newly_stale: u64,
    pub written: u64,
    pub discarded: u64,
}

/// eBPF says that these are about to be written, or thrown away: stale from now on, and not to be read before that is over.
pub(super) fn marked(
    map: &mut PageMap,
    queue: &mut Queue,
    written: &mut [PageRange],
    discarded: &mut [PageRange],
) -> Noted {
    // Marks of a layout that has just been replaced may name pages that are no more.
    let pages = map.pages();
    for run in written.iter_mut().chain(discarded.iter_mut()) {
        *run = run.start.min(pages)..run.end.min(pages);
    }
    let newly_stale = map.mark_stale(written) + map.mark_stale(discarded);
    for run in written.iter() {
        queue.marked(run.clone());
    }
    for run in discarded.iter() {
        queue.discarding(run.clone());
    }
    let count = |runs: &[PageRange]| runs.iter().map(|run| run.len() as u64).sum();
    Noted { newly_stale, written: count(written), discarded: count(discarded) }
}

/// Any of these may be being thrown away right now. Returns how many were not stale before.
pub(super) fn may_be_discarded(map: &mut PageMap, queue: &mut Queue, pages: PageRange) -> u64 {
    let newly = stale_run(map, &pages);
    queue.discarding(pages);
    newly
}

/// The pages a scan has to look at. `recheck`: also those that were published lately.
pub(super) fn steered(queue: &Queue, recheck: bool) -> RoaringBitmap {
    let mut pages = queue.awaited();
    if recheck {
        pages |= queue.recent();
    }
    pages
}

/// A scan found these written. Returns how many were not stale before.
pub(super) fn found_written(map: &mut PageMap, queue: &mut Queue, written: &RoaringBitmap) -> u64 {
    // What was hot, or found before, is queued already; taking it again would undo its delay.
    let awaited = queue.awaited();
    let fresh = written.iter().filter(|page| awaited.contains(*page) || !is_stale(map, *page)).collect();
    let newly = stale(map, &fresh);
    queue.written(&fresh);
    newly
}

/// Whether everything has to be scanned, because a write is known of that names no page.
///
/// Such a mark too comes before its write, so one scan is not enough: it may come between the two. Everything is scanned once more
/// after one to two rotations, when the write has landed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct FullScan {
    wanted: bool,
    later: [bool; 2],
}

impl FullScan {
    /// A write was marked that could not be mapped to a page, or may have gone unmarked.
    pub(super) fn want(&mut self) {
        self.wanted = true;
        self.later[0] = true;
    }

    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    /// Everything has been scanned.
    pub(super) fn done(&mut self) {
        self.wanted = false;
    }

    /// About a second has passed.
    pub(super) fn rotate(&mut self) {
        self.wanted |= self.later[1];
        self.later = [false, self.later[0]];
    }

    /// Whether a scan of everything is still to come, now or later.
    pub(super) fn to_come(&self) -> bool {
        self.wanted || self.later.contains(&true)
    }
}

/// From a batch that the queue gave: the pages that are to be armed and read now. `current_is_true`: what is not stale need not be read.
pub(super) fn to_settle(
    map: &PageMap,
    queue: &mut Queue,
    mut batch: RoaringBitmap,
    current_is_true: bool,
    with_marks: impl FnOnce(&RoaringBitmap) -> RoaringBitmap,
) -> RoaringBitmap {
    if current_is_true && let (Some(first), Some(last)) = (batch.min(), batch.max()) {
        // What became current in the meantime (a sync, a page queued twice) need not be read again.
        batch &= map.in_state(first..last + 1, &[PageState::Stale]);
    }
    // A page with a mark that nobody has taken yet must not be armed: the next scan could not see any more that it was written,
    // and would wait for a write that has long landed.
    let marked = with_marks(&batch);
    queue.postpone(&marked);
    batch - marked
}

/// From a batch that is to be settled: the pages that are armed. The spent ones wait until everything is armed once more.
pub(super) fn armed_only(queue: &mut Queue, batch: RoaringBitmap, spent: RoaringBitmap) -> RoaringBitmap {
    queue.until_armed(&spent);
    batch - spent
}

/// These could not be settled. What was written meanwhile has been queued by the check. What was only marked, or could not be armed, has
/// its turn after the next look at the marks.
pub(super) fn unsettled(queue: &mut Queue, pages: RoaringBitmap) {
    if !pages.is_empty() {
        let unqueued = pages - queue.all();
        queue.postpone(&unqueued);
    }
}

/// What page table and RAM file say of a window of pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Sighting {
    /// Present and write-protected.
    pub armed: RoaringBitmap,
    /// Present and writable.
    pub open: RoaringBitmap,
    /// Not a hole.
    pub data: RoaringBitmap,
    /// All zero: looked at only where nobody tells of discards.
    pub zero: RoaringBitmap,
}

/// What an audit has found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Shown as known, but no witness says so.
    pub doubtful: RoaringBitmap,
    /// Those of them that were written.
    pub written: RoaringBitmap,
}

impl Findings {
    /// Holds what the map shows of a window against what is there: data and a *protected* entry for what is shown as `current` or
    /// `zero`; neither data nor an unprotected entry for what is shown as `absent`. What is shown with a fingerprint and reads all zero was thrown away, and
    /// is there again: protected, and no hole.
    pub(super) fn compare(&mut self, map: &PageMap, window: Range<u32>, seen: &Sighting) {
        if !seen.zero.is_empty() {
            self.doubtful |= map.in_state(window.clone(), &[PageState::Current]) & &seen.zero;
        }
        let held = map.in_state(window.clone(), &[PageState::Current, PageState::Zero]);
        let absent = map.in_state(window, &[PageState::Absent]);
        self.doubtful |= &held - &seen.armed;
        self.doubtful |= &held - &seen.data;
        self.doubtful |= &absent & (&seen.open | &seen.data);
        self.written |= (held | absent) & &seen.open;
    }
}

/// An audit has come to its end: what is doubtful is stale and queued, and so is every stale page of `readable` that was queued nowhere.
/// Returns how many were not stale before.
pub(super) fn audited(
    map: &mut PageMap,
    queue: &mut Queue,
    found: &Findings,
    readable: impl FnOnce(RoaringBitmap) -> RoaringBitmap,
) -> u64 {
    let newly = stale(map, &found.doubtful);
    queue.written(&found.written);
    queue.ready(&(&found.doubtful - &found.written));
    let forgotten = map.in_state(0..u32::MAX, &[PageState::Stale]) - queue.all();
    queue.ready(&readable(forgotten));
    newly
}

/// Something else is mapped where the pages were: what is known of them says nothing, nor does what is being read of them.
/// Returns how many were not stale before.
pub(super) fn mapped_anew(map: &mut PageMap, epoch: &mut u64, pages: &PageRange) -> u64 {
    *epoch += 1;
    stale_run(map, pages)
}

/// Pages are numbered anew from `kept` on. Returns what the reverse index must follow.
pub(super) fn renumber(
    map: &mut PageMap,
    queue: &mut Queue,
    layout: std::sync::Arc<Layout>,
    kept: u32,
) -> Vec<Change> {
    let changes = map.relayout(layout, kept);
    // Of the pages that stay, what is awaited or being discarded stays so: reading them early would miss the write.
    queue.forget_from(kept);
    changes
}

/// Pages have been numbered anew and the marks laid out for the new numbers: all from `kept` on are to be read.
pub(super) fn renumbered(map: &PageMap, queue: &mut Queue, kept: u32) {
    // A discard that entered under the old numbers may still be on its way to pages that have new ones.
    queue.discarding(kept..map.pages());
    let unqueued = map.in_state(0..u32::MAX, &[PageState::Stale]) - queue.all();
    queue.ready(&unqueued);
}

/// Marks a run of pages as stale. Returns how many were not stale before.
pub(super) fn stale_run(map: &mut PageMap, run: &PageRange) -> u64 {
    map.mark_stale(std::slice::from_ref(run))
}

/// The same for a set.
pub(super) fn stale(map: &mut PageMap, pages: &RoaringBitmap) -> u64 {
    let runs: Vec<_> = runs(pages).collect();
    map.mark_stale(&runs)
}

/// As held: an unsettled page is shown as stale, but a write to it is news.
fn is_stale(map: &PageMap, page: u32) -> bool {
    page >= map.pages() || map.page(page).held == PageState::Stale
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        map::Content,
        units::Hva,
        vm::descriptor::{Backing, Region},
    };

    #[test]
    fn a_write_without_a_mark_is_news_whether_the_page_was_settled_or_not() {
        let region = Region {
            start: Hva(0),
            len: 4 * memdex_wire::PAGE_SIZE as u64,
            mapping_page_size: memdex_wire::PAGE_SIZE as u64,
            name: "ram".to_owned(),
            backing: Backing::Anonymous,
        };
        let mut map = PageMap::new(Arc::new(Layout::of(&[region])));
        let mut queue = Queue::new();
        let generation = map.next_generation();
        for (page, settled) in [(0, true), (1, false)] {
            map.publish(generation, settled, page, &[Some(Content::Zero)], &mut Vec::new());
        }
        let written = RoaringBitmap::from_iter([0, 1]);
        assert_eq!(found_written(&mut map, &mut queue, &written), 2);
        assert_eq!(queue.take(10), written);
        // They are queued by now: found again, nothing comes of it.
        assert_eq!(found_written(&mut map, &mut queue, &written), 0);
        assert!(!queue.has_ready());
    }
}
