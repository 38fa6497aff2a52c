//! Arming everything at once: the steps of the tracker's `whole`, over the modelled kernel.
//!
//! Each step asks one thing. Where the kernel holds the lock of the address space (a fault from its mark until it is resolved, a clearing), the
//! other one waits; see [`super::world::World::may_clear`].

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;

use super::{
    Break, System,
    driver::{Action, Look},
    events::Event,
    layout::mapped_anew,
    state::{At, State},
    world::{Entry, World, Writer},
};

/// How far a round has come. `quiet`: how many migrations had begun before the clearing, if none was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Round {
    Scan,
    Quiet,
    Clear { quiet: Option<u32> },
    Marks { quiet: bool },
}

impl System {
    /// A round may begin whenever the tracker is between batches, whether pages wait for it or not.
    pub(super) fn round_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let waits = matches!(state.at, At::Round(Round::Clear { .. })) && !state.world.may_clear();
        if self.whole && !waits {
            actions.push(Action::Round);
        }
    }

    pub(super) fn round(&self, state: &mut State) {
        let next = match &state.at {
            At::Round(Round::Scan) => {
                self.scan(state, Look::All);
                Round::Quiet
            }
            At::Round(Round::Quiet) => {
                Round::Clear { quiet: state.world.migrating.is_none().then_some(state.world.migrations) }
            }
            At::Round(Round::Clear { quiet }) => {
                let quiet = *quiet == Some(state.world.migrations) || self.broken == Break::IgnoreMigrations;
                state.world.clear();
                state.spent = if quiet {
                    RoaringBitmap::new()
                } else {
                    state.map.in_state(0..u32::MAX, &[PageState::Stale])
                };
                Round::Marks { quiet }
            }
            At::Round(Round::Marks { quiet }) => {
                let quiet = *quiet;
                for region in 0..state.epochs.len() {
                    if !state.world.registered[region] {
                        mapped_anew(state, region);
                    }
                }
                if self.broken == Break::DropMarks {
                    state.world.pages.iter_mut().for_each(|page| page.written = false);
                }
                self.take_marks(state);
                if quiet {
                    state.queue.all_armed();
                }
                state.at = At::Loop;
                return;
            }
            At::Loop | At::Scan | At::Rotate | At::Audit(_) => {
                self.take_marks(state);
                Round::Scan
            }
        };
        state.at = At::Round(next);
    }

    /// A whole round, once the guest has come to rest.
    pub(super) fn whole_round(&self, state: &mut State) {
        if self.whole {
            state.at = At::Loop;
            (0..5).for_each(|_| self.round(state));
        }
    }
}

impl World {
    /// What may happen only where soft-dirty bits matter.
    pub(super) fn soft_dirty_events(&self, events: &mut Vec<Event>) {
        if self.migrating.is_some() {
            events.push(Event::MigrationEnds);
        }
        for page in (0..).zip(&self.pages).filter(|(_, at)| at.file.is_some() && at.entry != Entry::None) {
            let (page, idle) = (page.0, self.migrating.is_none());
            if idle && self.budget.migrations > 0 {
                events.push(Event::MigrationStarts(page));
            }
            if self.budget.zaps > 0 && self.migrating != Some(page) {
                events.push(Event::Zap(page));
            }
        }
        if self.budget.clears > 0 && self.may_clear() {
            events.push(Event::OthersClear);
        }
    }

    /// Whether the lock of the address space can be had for clearing: a fault holds it from its mark until it is resolved.
    pub(super) fn may_clear(&self) -> bool {
        !self.writers.iter().any(|writer| matches!(writer, Writer::Faulted { .. }))
    }

    /// Clears all soft-dirty bits and protects what has an entry; one that is being migrated comes back as it was.
    pub(super) fn clear(&mut self) {
        let migrating = self.migrating;
        for (page, at) in (0..).zip(&mut self.pages) {
            at.entry = match at.entry {
                Entry::Open if migrating == Some(page) => Entry::Blind,
                Entry::Open | Entry::Clean => Entry::Armed,
                Entry::Blind if migrating != Some(page) => Entry::Armed,
                other => other,
            };
        }
    }
}
