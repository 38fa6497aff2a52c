//! Pages whose turn to be armed again has not come, because the guest's budget is used up. Pure bookkeeping.
//!
//! They wait in two lines, hot pages and all others, and each line is served in a circle: whoever waits has its turn before any page has it twice.

use std::ops::Range;

use roaring::RoaringBitmap;

use super::cost::Kind;

/// Ticks from one release to the next: pages beside each other gather meanwhile, and are armed by one call.
const EVERY: u8 = 4;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Held {
    quiet: Line,
    hot: Line,
    /// Released, and not armed yet: they need not be asked for again.
    approved: RoaringBitmap,
    ticks: u8,
}

/// Pages that wait, and where the next turn begins.
#[derive(Debug, Clone, Default, PartialEq)]
struct Line {
    pages: RoaringBitmap,
    next: u32,
}

impl Held {
    pub(super) fn hold(&mut self, pages: &RoaringBitmap, kind: Kind) {
        self.line(kind).pages |= pages;
    }

    /// Whether pages of this kind wait: then nobody may pass them.
    pub(super) fn holds(&self, kind: Kind) -> bool {
        let line = if kind == Kind::Quiet { &self.quiet } else { &self.hot };
        !line.pages.is_empty()
    }

    /// A tick has passed. Now and then `afford` is asked which pages can be armed now; these wait no longer.
    pub(super) fn release(
        &mut self,
        mut afford: impl FnMut(&RoaringBitmap, Kind) -> RoaringBitmap,
    ) -> RoaringBitmap {
        self.ticks = (self.ticks + 1) % EVERY;
        if self.ticks != 0 || !(self.holds(Kind::Quiet) || self.holds(Kind::Hot)) {
            return RoaringBitmap::new();
        }
        let mut released = RoaringBitmap::new();
        for kind in [Kind::Quiet, Kind::Hot] {
            released |= self.line(kind).serve(|pages| afford(pages, kind));
        }
        self.approved |= &released;
        released
    }

    /// Those of `pages` that have been released; they are armed now.
    pub(super) fn take_approved(&mut self, pages: &RoaringBitmap) -> RoaringBitmap {
        let approved = pages & &self.approved;
        self.approved -= &approved;
        approved
    }

    /// Released, and not armed yet.
    pub(super) fn approved(&self) -> &RoaringBitmap {
        &self.approved
    }

    /// Every page that waits.
    pub(super) fn all(&self) -> RoaringBitmap {
        &self.quiet.pages | &self.hot.pages
    }

    /// These have been read, whoever wanted it: their turn need not come.
    pub(super) fn settled(&mut self, run: Range<u32>) {
        for set in [&mut self.quiet.pages, &mut self.hot.pages, &mut self.approved] {
            set.remove_range(run.clone());
        }
    }

    pub(super) fn forget_from(&mut self, page: u32) {
        for set in [&mut self.quiet.pages, &mut self.hot.pages, &mut self.approved] {
            set.remove_range(page..);
        }
    }

    fn line(&mut self, kind: Kind) -> &mut Line {
        if kind == Kind::Quiet { &mut self.quiet } else { &mut self.hot }
    }
}

impl Line {
    fn serve(&mut self, mut afford: impl FnMut(&RoaringBitmap) -> RoaringBitmap) -> RoaringBitmap {
        let mut before = self.pages.clone();
        before.remove_range(self.next..);
        let after = &self.pages - &before;
        let mut served = afford(&after);
        let mut last = served.max();
        if served.len() == after.len() {
            let more = afford(&before);
            last = more.max().or(last);
            served |= more;
        }
        self.pages -= &served;
        if let Some(last) = last {
            self.next = last.saturating_add(1);
        }
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Affords `most` pages in all.
    fn first(most: usize) -> impl FnMut(&RoaringBitmap, Kind) -> RoaringBitmap {
        let mut left = most;
        move |pages, _| {
            let afforded: RoaringBitmap = pages.iter().take(left).collect();
            left -= afforded.len() as usize;
            afforded
        }
    }

    #[test]
    fn everybody_has_a_turn_before_anybody_has_two() {
        let mut held = Held::default();
        let all: RoaringBitmap = (0..100).collect();
        held.hold(&all, Kind::Quiet);
        let mut served = RoaringBitmap::new();
        let mut calls = 0;
        while served.len() < 100 {
            calls += 1;
            assert!(calls < 100);
            let released = held.release(first(10));
            assert!(served.is_disjoint(&released), "a page has had its turn twice");
            // They are written at once and wait again.
            held.hold(&released, Kind::Quiet);
            served |= released;
        }
        assert_eq!(calls, 10 * u32::from(EVERY));
    }

    #[test]
    fn what_was_released_needs_no_second_answer() {
        let mut held = Held::default();
        held.hold(&(5..9).collect(), Kind::Hot);
        assert!(held.holds(Kind::Hot) && !held.holds(Kind::Quiet));
        let released = (0..EVERY).fold(RoaringBitmap::new(), |all, _| all | held.release(first(2)));
        assert_eq!(released, (5..7).collect());
        assert_eq!(held.all(), (7..9).collect());
        assert_eq!(held.take_approved(&(6..20).collect()), (6..7).collect());
        assert_eq!(held.take_approved(&(6..20).collect()), RoaringBitmap::new());
        held.forget_from(0);
        assert_eq!((held.all().len(), held.approved().len()), (0, 0));
    }
}
