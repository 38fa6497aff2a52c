//! What the tracker looks at, as far as it matters: RAM files, page-table entries and marks of a few bits each, and the guest that changes them.
//!
//! Follows the kernel in what the tracker relies on: a write to a page that is not writable takes a fault; the mark is made when the fault is
//! taken; resolving it makes the entry writable, and then the store is *tried again*, so a page armed in between takes another
//! fault; punching a hole leaves the protection of the entry where it is.

use std::ops::Range;

use super::{
    super::protocol::Sighting,
    events::{Budget, Event, Marking},
};

/// A page-table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    /// Nothing there: any access takes a fault.
    None,
    /// Brought in by a read: unprotected, but the first write takes a fault.
    Clean,
    /// Writable: writes are seen by nobody.
    Open,
    /// Write-protected, or a marker that says so of a page that is not there.
    Armed,
    /// Writable, and the bit that says so was cleared while the page was being migrated.
    Blind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Page {
    /// What the page holds; `None` for a hole, which reads as zero.
    pub file: Option<u32>,
    pub entry: Entry,
    /// eBPF's marks that nobody has taken.
    pub written: bool,
    pub discarded: bool,
}

impl Page {
    pub(super) fn content(&self) -> u32 {
        self.file.unwrap_or(0)
    }

    /// What a scan calls written: there, and not protected.
    pub(super) fn open(&self) -> bool {
        self.file.is_some() && matches!(self.entry, Entry::Clean | Entry::Open)
    }
}

/// Who writes: a virtual CPU, a device, a system call of the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Writer {
    Idle,
    /// The fault has been taken and marked; `turns` of the second hand ago at most.
    Faulted {
        page: u32,
        value: u32,
        turns: u8,
    },
    /// The fault is resolved, the store not yet tried again.
    Resolved {
        page: u32,
        value: u32,
        turns: u8,
    },
}

/// A system call that throws a page away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Discard {
    None,
    Entered { page: u32 },
    Done,
}

/// How many of each event may still come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub pages: Vec<Page>,
    /// For each region, whether its mapping is the one that was registered.
    pub registered: Vec<bool>,
    pub ends: Vec<u32>,
    pub writers: Vec<Writer>,
    pub discard: Discard,
    /// Soft-dirty bits protect, not a userfaultfd.
    pub whole: bool,
    /// The page that is being migrated, and how many have begun to be.
    pub migrating: Option<u32>,
    pub migrations: u32,
    pub overflowed: bool,
    pub discards_overflowed: bool,
    pub budget: Budget,
    /// Every write is of a value of its own, so that one mistaken for another shows.
    pub last_value: u32,
}

impl World {
    /// A VM that has just been registered: page 0 of each region holds something, the others are holes.
    pub(super) fn new(regions: &[u32], writers: usize, budget: Budget) -> Self {
        let hole = Page { file: None, entry: Entry::None, written: false, discarded: false };
        let mut world = Self {
            pages: Vec::new(),
            registered: vec![true; regions.len()],
            ends: Vec::new(),
            writers: vec![Writer::Idle; writers],
            discard: Discard::None,
            whole: false,
            migrating: None,
            migrations: 0,
            overflowed: false,
            discards_overflowed: false,
            budget,
            last_value: 0,
        };
        for pages in regions {
            let value = world.value();
            world.pages.push(Page { file: Some(value), entry: Entry::Open, ..hole });
            world.pages.extend((1..*pages).map(|_| hole));
            world.ends.push(world.pages.len() as u32);
        }
        world
    }

    pub(super) fn range(&self, region: usize) -> Range<u32> {
        region.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[region]
    }

    pub(super) fn region_of(&self, page: u32) -> usize {
        self.ends.partition_point(|end| *end <= page)
    }

    pub(super) fn page(&mut self, page: u32) -> &mut Page {
        &mut self.pages[page as usize]
    }

    /// Whether the guest has done all it will do.
    pub(super) fn quiet(&self) -> bool {
        let idle = self.writers.iter().all(|writer| *writer == Writer::Idle);
        idle && self.discard == Discard::None && self.migrating.is_none()
    }

    pub(super) fn finished(&self) -> bool {
        let Budget { writes, touches, discards, remaps, migrations, zaps, clears, .. } = self.budget;
        self.quiet() && writes + touches + discards + remaps + migrations + zaps + clears == 0
    }

    fn value(&mut self) -> u32 {
        self.last_value += 1;
        self.last_value
    }

    /// Lets an event happen. `marking` says what becomes of marks; `lossy`: those that a flag should stand for are lost.
    pub(super) fn happen(&mut self, event: Event, marking: bool, lossy: bool) {
        let how = |vague| match (marking, vague, lossy) {
            (false, ..) | (true, true, true) => Marking::Nothing,
            (true, true, false) => Marking::Flag,
            (true, false, _) => Marking::Page,
        };
        let whole = self.whole;
        match event {
            Event::Write { writer, page, zero, vague } => {
                self.budget.writes -= 1;
                self.budget.zeros -= u32::from(zero);
                self.budget.vague -= u32::from(vague);
                let value = if zero { 0 } else { self.value() };
                self.store(writer, page, value, how(vague));
            }
            Event::Resolve(writer) => {
                let Writer::Faulted { page, value, turns } = self.writers[writer] else { return };
                let at = self.page(page);
                at.file = at.file.or(Some(0));
                at.entry = Entry::Open;
                self.writers[writer] = Writer::Resolved { page, value, turns };
                if self.budget.refaults == 0 {
                    self.store(writer, page, value, how(false));
                }
            }
            Event::Retry(writer) => {
                let Writer::Resolved { page, value, .. } = self.writers[writer] else { return };
                if self.pages[page as usize].entry != Entry::Open {
                    self.budget.refaults = self.budget.refaults.saturating_sub(1);
                }
                self.store(writer, page, value, how(false));
            }
            Event::Touch(page) => {
                self.budget.touches -= 1;
                let at = self.page(page);
                at.file = at.file.or(Some(0));
                if at.entry == Entry::None {
                    at.entry = if whole { Entry::Armed } else { Entry::Clean };
                }
            }
            Event::DiscardEnters { page, vague } => {
                self.budget.discards -= 1;
                self.budget.vague -= u32::from(vague);
                self.discard = Discard::Entered { page };
                match how(vague) {
                    Marking::Page => self.page(page).discarded = true,
                    Marking::Flag => self.discards_overflowed = true,
                    Marking::Nothing => {}
                }
            }
            Event::DiscardDoes => {
                let Discard::Entered { page } = self.discard else { return };
                let at = self.page(page);
                at.file = None;
                if whole || at.entry != Entry::Armed {
                    at.entry = Entry::None;
                }
                self.discard = Discard::Done;
            }
            Event::DiscardExits => self.discard = Discard::None,
            Event::MigrationStarts(page) => {
                self.budget.migrations -= 1;
                self.migrations += 1;
                self.migrating = Some(page);
            }
            Event::MigrationEnds => self.migrating = None,
            Event::Zap(page) => {
                self.budget.zaps -= 1;
                self.page(page).entry = Entry::None;
            }
            Event::OthersClear => {
                self.budget.clears -= 1;
                self.clear();
            }
            Event::Remap(region) => {
                self.budget.remaps -= 1;
                self.registered[region] = false;
                let range = self.range(region);
                for page in range.clone() {
                    // The new memory holds something where the old had nothing, and the other way round.
                    let file = if self.page(page).file.is_none() { Some(self.value()) } else { None };
                    let at = self.page(page);
                    (at.file, at.entry) = (file, Entry::None);
                }
            }
        }
    }

    fn store(&mut self, writer: usize, page: u32, value: u32, marking: Marking) {
        let at = self.page(page);
        if matches!(at.entry, Entry::Open | Entry::Blind) && at.file.is_some() {
            at.file = Some(value);
            self.writers[writer] = Writer::Idle;
            return;
        }
        match marking {
            Marking::Page => at.written = true,
            Marking::Flag => self.overflowed = true,
            Marking::Nothing => {}
        }
        self.writers[writer] = Writer::Faulted { page, value, turns: 0 };
    }

    /// Whether the second hand may turn: no fault may be older than the time a mark is waited for.
    pub(super) fn may_turn(&self) -> bool {
        self.writers.iter().all(|writer| match writer {
            Writer::Idle => true,
            Writer::Faulted { turns, .. } | Writer::Resolved { turns, .. } => *turns == 0,
        })
    }

    pub(super) fn turn(&mut self) {
        for writer in &mut self.writers {
            if let Writer::Faulted { turns, .. } | Writer::Resolved { turns, .. } = writer {
                *turns = 1;
            }
        }
    }

    /// Looks at the marks of a page without taking them, as [`super::super::ebpf::Marks::any`] does.
    pub(super) fn marked(&self, page: u32) -> bool {
        let at = &self.pages[page as usize];
        self.discards_overflowed || at.written || at.discarded
    }

    /// Arms a page: an entry or, where there is none, a marker.
    pub(super) fn arm(&mut self, page: u32) {
        self.page(page).entry = Entry::Armed;
    }

    /// What page table and RAM file say of a window: what an audit looks at.
    pub(super) fn sighting(&self, window: Range<u32>) -> Sighting {
        let mut seen = Sighting::default();
        for page in window {
            let at = &self.pages[page as usize];
            // Soft-dirty bits: what is not reported is protected, or so it seems.
            if at.entry == Entry::Armed || (self.whole && at.entry != Entry::Open) {
                seen.armed.insert(page);
            }
            if at.open() {
                seen.open.insert(page);
            }
            if at.file.is_some() {
                seen.data.insert(page);
            }
            if at.file == Some(0) {
                seen.zero.insert(page);
            }
        }
        seen
    }
}
