//! Arming everything at once: the steps of the tracker's `whole`, over the modelled kernel.
//!
//! Each step asks one thing. Where the kernel holds the lock of the address space (a fault from its mark until it is resolved, a clearing), the
//! other one waits; see [`super::world::World::may_clear`].

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;

use super::{
    Break, System,
    driver::{Action, Look, mapped_anew},
    state::{At, State},
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
                    state.queue.release();
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
