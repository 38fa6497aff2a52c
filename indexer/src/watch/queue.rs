//! Which stale pages are to be read, and when. Pure bookkeeping: no clock, no kernel.
//!
//! Time is counted in ticks. A stale page is in at least one of these places:
//!
//! - *awaited*: eBPF marked it, but no scan has seen it written yet. The mark comes before the write, so the page must not
//!   be read yet: arming it now and reading it would publish the bytes from before the write, and nothing would tell
//!   of the write that lands later. If no scan sees a write for one to two rotations, the fault was not a write after
//!   all (it was resolved by another thread, or ended in a signal), and the page is read; the slow audit is the net
//!   under this.
//! - *discarding*: a system call that throws pages away was seen entering. Such a page must not be read before the call
//!   has returned.
//! - *ready*: may be armed and read now.
//! - *unarmed*: to be read when everything has been armed once more, where pages cannot be armed one by one (soft-dirty bits).
//! - *delayed*: a hot page, written again right after it was read. Chasing it would cost the guest a fault each time, so
//!   it is left writable for 1, 2, 4 … ticks.
//! - *[held](super::held)*: the guest's budget for faults is used up, so it is left writable until its turn comes.

use std::{collections::HashMap, ops::Range};

use roaring::RoaringBitmap;

use super::held::Held;

/// Highest heat: a delay of 64 ticks, 1.3 seconds.
const HOTTEST: u8 = 7;
/// Slots of the wheel: the longest delay in ticks, plus one.
const SLOTS: usize = delay(HOTTEST) + 1;

/// Ticks to leave a page alone that was written `heat` times soon after it was read.
const fn delay(heat: u8) -> usize {
    1 << (heat - 1)
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Queue {
    awaited: [RoaringBitmap; 2],
    /// Pages of which a discard was seen in this rotation and in the one before. Nothing is decided by it.
    thrown_away: [RoaringBitmap; 2],
    discarding: RoaringBitmap,
    ready: RoaringBitmap,
    unarmed: RoaringBitmap,
    wheel: Vec<RoaringBitmap>,
    now: usize,
    /// Pages published in this rotation and in the one before.
    recent: [RoaringBitmap; 2],
    heat: HashMap<u32, u8>,
    held: Held,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    /// A queue in which nothing waits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            awaited: Default::default(),
            thrown_away: Default::default(),
            discarding: RoaringBitmap::new(),
            ready: RoaringBitmap::new(),
            unarmed: RoaringBitmap::new(),
            wheel: vec![RoaringBitmap::new(); SLOTS],
            now: 0,
            recent: Default::default(),
            heat: HashMap::new(),
            held: Held::default(),
        }
    }

    /// One tick has passed: delayed pages whose time has come are ready.
    pub fn tick(&mut self) {
        self.now = (self.now + 1) % SLOTS;
        let due = std::mem::take(&mut self.wheel[self.now]);
        self.ready |= due;
    }

    /// About a second has passed: what was awaited all through the last rotation is ready, heat cools down. Returns what was awaited in
    /// vain: it was marked, and no scan saw it written, nor was it thrown away: what is written and thrown away between two scans is seen by none.
    pub fn rotate(&mut self) -> RoaringBitmap {
        let old = std::mem::take(&mut self.awaited[1]);
        self.awaited[1] = std::mem::take(&mut self.awaited[0]);
        self.ready |= &old;
        let unanswered = (old - &self.thrown_away[0]) - &self.thrown_away[1];
        self.thrown_away[1] = std::mem::take(&mut self.thrown_away[0]);
        self.recent[1] = std::mem::take(&mut self.recent[0]);
        if self.heat.len() > 4096 {
            let delayed = self.wheel.iter().fold(self.held.all(), |all, slot| all | slot);
            self.heat.retain(|page, _| self.recent[1].contains(*page) || delayed.contains(*page));
        }
        unanswered
    }

    /// eBPF says that these are about to be written.
    pub fn marked(&mut self, run: Range<u32>) {
        self.awaited[0].insert_range(run);
    }

    /// A discard of these was seen entering.
    pub(super) fn discarding(&mut self, run: Range<u32>) {
        self.thrown_away[0].insert_range(run.clone());
        self.discarding.insert_range(run);
    }

    /// No discard is in flight: what was being discarded can be read.
    pub(super) fn discards_done(&mut self) {
        self.ready |= std::mem::take(&mut self.discarding);
    }

    pub(super) fn awaits_discards(&self) -> bool {
        !self.discarding.is_empty()
    }

    /// Pages that must not be read yet, whoever asks.
    pub(super) fn in_discard(&self) -> &RoaringBitmap {
        &self.discarding
    }

    /// Pages whose write no scan has seen yet.
    pub(super) fn awaited(&self) -> RoaringBitmap {
        &self.awaited[0] | &self.awaited[1]
    }

    /// Whether there are such pages: marked in this rotation, in the one before.
    pub(super) fn awaits_writes(&self) -> [bool; 2] {
        self.awaited.each_ref().map(|marked| !marked.is_empty())
    }

    /// A scan has seen these written: read them now, or later if they are hot.
    pub fn written(&mut self, pages: &RoaringBitmap) {
        self.awaited[0] -= pages;
        self.awaited[1] -= pages;
        for page in pages {
            let heat = if self.recent[0].contains(page) || self.recent[1].contains(page) {
                let heat = self.heat.entry(page).or_default();
                *heat = (*heat + 1).min(HOTTEST);
                *heat
            } else {
                self.heat.remove(&page);
                0
            };
            if heat == 0 {
                self.ready.insert(page);
            } else {
                let slot = (self.now + delay(heat)) % SLOTS;
                self.wheel[slot].insert(page);
            }
        }
    }

    /// Pages that the guest's budget leaves out for now.
    pub(super) fn held(&mut self) -> &mut Held {
        &mut self.held
    }

    /// Those of `pages` that were written again soon after they had been read.
    pub(super) fn heated(&self, pages: &RoaringBitmap) -> RoaringBitmap {
        pages.iter().filter(|page| self.heat.contains_key(page)).collect()
    }

    /// Read these at the next opportunity.
    pub(super) fn ready(&mut self, pages: &RoaringBitmap) {
        self.ready |= pages;
    }

    /// The same for a run.
    pub(super) fn ready_run(&mut self, run: Range<u32>) {
        self.ready.insert_range(run);
    }

    /// These have just been read, all of them well, by somebody who did not take them from here: their turn need not come again.
    pub(super) fn served(&mut self, pages: &RoaringBitmap) {
        self.ready -= pages;
    }

    /// Read these when everything has been armed.
    pub(super) fn until_armed(&mut self, pages: &RoaringBitmap) {
        self.unarmed |= pages;
    }

    pub(super) fn awaits_arming(&self) -> bool {
        !self.unarmed.is_empty()
    }

    /// Everything has been armed.
    pub(super) fn all_armed(&mut self) {
        self.ready |= std::mem::take(&mut self.unarmed);
    }

    /// Read these after the next look at the marks, which comes right after the next tick.
    pub(super) fn postpone(&mut self, pages: &RoaringBitmap) {
        let slot = (self.now + 1) % SLOTS;
        self.wheel[slot] |= pages;
    }

    /// These have been read and published.
    pub fn published(&mut self, run: Range<u32>) {
        self.held.settled(run.clone());
        self.recent[0].insert_range(run);
    }

    pub(super) fn is_ready(&self, page: u32) -> bool {
        self.ready.contains(page)
    }

    /// Whether any page may be armed and read now.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes up to `most` ready pages, lowest first; fewer if some may not be read yet.
    pub fn take(&mut self, most: u32) -> RoaringBitmap {
        let batch = match self.ready.select(most) {
            None => std::mem::take(&mut self.ready),
            Some(first_left) => {
                let mut batch = self.ready.clone();
                batch.remove_range(first_left..);
                self.ready.remove_range(..first_left);
                batch
            }
        };
        // A page that is being discarded, or about to be written, has its turn when that is over.
        ((batch - &self.discarding) - &self.awaited[0]) - &self.awaited[1]
    }

    /// Pages published in the last one to two rotations. A fault may have been taken, and marked, before such a page was
    /// armed for the last time, and be resolved only now: then the write lands without a mark of its own. So these are
    /// scanned again for a while.
    pub(super) fn recent(&self) -> RoaringBitmap {
        &self.recent[0] | &self.recent[1]
    }

    /// Every page that is somewhere in here.
    pub(super) fn all(&self) -> RoaringBitmap {
        let queued = &(&self.awaited[0] | &self.awaited[1]) | &(&self.discarding | &self.ready);
        let queued = queued | self.held.all() | &self.unarmed;
        self.wheel.iter().fold(queued, |all, slot| all | slot)
    }

    /// Pages that are hot right now.
    pub(super) fn hot(&self) -> u64 {
        self.wheel.iter().fold(RoaringBitmap::new(), |all, slot| all | slot).len()
    }

    /// Forgets all pages from this one on: they are numbered anew.
    pub(super) fn forget_from(&mut self, page: u32) {
        let sets = self
            .awaited
            .iter_mut()
            .chain(&mut self.thrown_away)
            .chain(&mut self.recent)
            .chain(&mut self.wheel);
        for set in sets.chain([&mut self.discarding, &mut self.ready, &mut self.unarmed]) {
            set.remove_range(page..);
        }
        self.held.forget_from(page);
        self.heat.retain(|hot, _| *hot < page);
    }
}

/// The runs of consecutive pages in a set.
pub(crate) fn runs(pages: &RoaringBitmap) -> impl Iterator<Item = Range<u32>> + '_ {
    let mut pages = pages.iter();
    std::iter::from_fn(move || {
        let run = pages.next_range()?;
        Some(*run.start()..run.end().saturating_add(1))
    })
}

/// Runs in which gaps of up to `gap` pages are bridged: fewer system calls for a few pages more.
pub(super) fn bridged(pages: &RoaringBitmap, gap: u32) -> Vec<Range<u32>> {
    let mut out: Vec<Range<u32>> = Vec::new();
    for run in runs(pages) {
        match out.last_mut() {
            Some(last) if run.start - last.end <= gap => last.end = run.end,
            _ => out.push(run),
        }
    }
    out
}

/// For the model checker, which has to recognise a state that it has seen. Where the wheel stands makes no difference, only how far ahead a page is.
#[cfg(test)]
mod identity {
    use std::hash::{Hash, Hasher};

    use super::{Queue, SLOTS};

    impl Queue {
        /// Ticks until a delayed page is ready.
        pub(in crate::watch) fn next_due(&self) -> Option<usize> {
            (1..SLOTS).find(|ahead| !self.wheel[(self.now + ahead) % SLOTS].is_empty())
        }
    }

    impl Hash for Queue {
        fn hash<H: Hasher>(&self, state: &mut H) {
            let wheel = (0..SLOTS).map(|ahead| &self.wheel[(self.now + ahead) % SLOTS]);
            let sets = self
                .awaited
                .iter()
                .chain(&self.recent)
                .chain([&self.discarding, &self.ready, &self.unarmed])
                .chain(wheel);
            for (index, set) in sets.enumerate().filter(|(_, set)| !set.is_empty()) {
                (index, set.len()).hash(state);
                set.iter().for_each(|page| page.hash(state));
            }
            let mut heat: Vec<_> = self.heat.iter().collect();
            heat.sort_unstable();
            heat.hash(state);
            // The model has no budget.
            debug_assert!(self.held.all().is_empty());
        }
    }
}

#[cfg(test)]
mod tests;
