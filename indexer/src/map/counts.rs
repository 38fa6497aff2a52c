//! How many pages are in each state, kept up to date with every change.

use memdex_wire::{page::PageState, vm::PageCounts};

use super::block::{INHERITED, held, shown};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Pages by the state they hold; `unsettled` stays 0.
    held: PageCounts,
    unsettled_zero: u64,
    unsettled_current: u64,
    /// Those of the stale ones that an earlier daemon knew, and that nobody has looked at yet.
    inherited: u64,
}

impl Counts {
    /// Counts pages with this byte.
    pub(super) fn add(&mut self, page: u8, pages: u64) {
        self.held.total += pages;
        self.each(page, |count| *count += pages);
    }

    /// Counts pages that had one byte and have another now.
    pub(super) fn turn(&mut self, before: u8, after: u8, pages: u64) {
        self.each(before, |count| *count -= pages);
        self.each(after, |count| *count += pages);
    }

    /// Counts pages that were counted in `newly` as stale. Returns how many were not shown as such before.
    pub(super) fn gone_stale(&mut self, newly: &Self) -> u64 {
        // Inherited pages were stale already.
        let pages = newly.held.total - newly.held.stale;
        self.held.absent -= newly.held.absent;
        self.held.zero -= newly.held.zero;
        self.held.current -= newly.held.current;
        self.held.stale += pages;
        self.unsettled_zero -= newly.unsettled_zero;
        self.unsettled_current -= newly.unsettled_current;
        self.inherited -= newly.inherited;
        pages
    }

    /// Counts further pages of which nothing is known.
    pub(super) fn add_unknown(&mut self, pages: u64) {
        self.held.total += pages;
        self.held.stale += pages;
    }

    /// Pages that an earlier daemon knew, and that nobody has looked at yet.
    pub(super) fn inherited(&self) -> u64 {
        self.inherited
    }

    /// By the state as held: unsettled pages count as what they held when they were read.
    pub(super) fn as_held(&self) -> PageCounts {
        self.held
    }

    /// By the state as shown: unsettled pages are stale.
    pub(super) fn as_shown(&self) -> PageCounts {
        let unsettled = self.unsettled_zero + self.unsettled_current;
        PageCounts {
            zero: self.held.zero - self.unsettled_zero,
            current: self.held.current - self.unsettled_current,
            stale: self.held.stale + unsettled,
            unsettled,
            ..self.held
        }
    }

    fn each(&mut self, page: u8, change: impl Fn(&mut u64)) {
        let state = held(page);
        change(match state {
            PageState::Absent => &mut self.held.absent,
            PageState::Zero => &mut self.held.zero,
            PageState::Current => &mut self.held.current,
            PageState::Stale => &mut self.held.stale,
        });
        if page & INHERITED != 0 {
            change(&mut self.inherited);
        } else if shown(page) != state {
            change(if state == PageState::Zero {
                &mut self.unsettled_zero
            } else {
                &mut self.unsettled_current
            });
        }
    }
}
