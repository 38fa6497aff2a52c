//! What the guest, its VMM and the kernel can do, how much of it in all, and what of it could come next. What comes of it is [`super::world`]'s.

use super::world::{Discard, Entry, World, Writer};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub writes: u32,
    /// Of the writes, those of zeros.
    pub zeros: u32,
    pub touches: u32,
    pub discards: u32,
    pub remaps: u32,
    /// Stores that find their page protected again after its fault was resolved; no more than so many are tried.
    pub refaults: u32,
    /// Marks that could not be made for a page: a flag is raised instead.
    pub vague: u32,
    /// Of soft-dirty tracking: pages that are migrated, entries that are reclaimed, bits that others clear.
    pub migrations: u32,
    pub zaps: u32,
    pub clears: u32,
}

/// What the guest, its VMM and the kernel do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// A writer stores to a page: at once if it is writable, else it takes a fault, which is marked.
    Write {
        writer: usize,
        page: u32,
        zero: bool,
        vague: bool,
    },
    Resolve(usize),
    Retry(usize),
    /// The guest reads a page.
    Touch(u32),
    DiscardEnters {
        page: u32,
        vague: bool,
    },
    DiscardDoes,
    DiscardExits,
    /// The VMM maps something else where the region was.
    Remap(usize),
    MigrationStarts(u32),
    MigrationEnds,
    /// The entry of a page that is still in its file is taken away.
    Zap(u32),
    /// Somebody else clears the soft-dirty bits.
    OthersClear,
}

/// How a mark is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marking {
    Page,
    Flag,
    Nothing,
}

impl World {
    /// The events that could come next.
    pub(super) fn events(&self, events: &mut Vec<Event>) {
        let pages = 0..self.pages.len() as u32;
        for (writer, doing) in self.writers.iter().enumerate() {
            match doing {
                Writer::Idle if self.budget.writes > 0 => {
                    // Who touches a page that is being migrated waits.
                    for page in pages.clone().filter(|page| self.migrating != Some(*page)) {
                        let write = |zero, vague| Event::Write { writer, page, zero, vague };
                        events.push(write(false, false));
                        if self.budget.zeros > 0 {
                            events.push(write(true, false));
                        }
                        if self.budget.vague > 0 && self.pages[page as usize].entry != Entry::Open {
                            events.push(write(false, true));
                        }
                    }
                }
                Writer::Idle => {}
                Writer::Faulted { page, .. } | Writer::Resolved { page, .. }
                    if self.migrating == Some(*page) => {}
                Writer::Faulted { .. } => events.push(Event::Resolve(writer)),
                Writer::Resolved { .. } => events.push(Event::Retry(writer)),
            }
        }
        for page in pages {
            let at = &self.pages[page as usize];
            let absent = at.file.is_none() || (self.whole && at.entry == Entry::None);
            if self.budget.touches > 0 && absent {
                events.push(Event::Touch(page));
            }
            if self.budget.discards > 0 && self.discard == Discard::None {
                events.push(Event::DiscardEnters { page, vague: false });
                if self.budget.vague > 0 {
                    events.push(Event::DiscardEnters { page, vague: true });
                }
            }
        }
        self.soft_dirty_events(events);
        match self.discard {
            Discard::None => {}
            Discard::Entered { page } if self.migrating == Some(page) => {}
            Discard::Entered { .. } => events.push(Event::DiscardDoes),
            Discard::Done => events.push(Event::DiscardExits),
        }
        if self.budget.remaps > 0 {
            events.extend((0..self.ends.len()).map(Event::Remap));
        }
    }
}
