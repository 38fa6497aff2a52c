//! The tracker's steps when memory is not what it was: pages that are numbered anew, a region that is mapped anew.

use super::{super::protocol, System, state::State, world::Entry};

impl System {
    /// The pages of a region and of those after it are numbered anew: the same numbers, but none is what it was.
    pub(super) fn relay(&self, state: &mut State, region: usize) {
        let kept = state.world.range(region).start;
        for index in region..state.epochs.len() {
            state.epochs[index] = 0;
            state.world.registered[index] = true;
            // Ending the registration takes the protection away; soft-dirty bits have none.
            for page in state.world.range(index) {
                let at = state.world.page(page);
                if !self.whole && at.entry == Entry::Armed {
                    let present = at.file.is_some();
                    at.entry = if present { Entry::Clean } else { Entry::None };
                }
            }
        }
        let layout = state.map.layout().clone();
        let changes = protocol::renumber(&mut state.map, &mut state.queue, layout, kept);
        self.follow(&changes);
        if self.whole {
            state.spent.insert_range(kept..state.map.pages());
        }
        self.take_marks(state);
        protocol::renumbered(&state.map, &mut state.queue, kept);
        state.full_scan.want();
    }
}

/// The VMM mapped something else there: registered anew, read anew.
pub(super) fn mapped_anew(state: &mut State, region: usize) {
    let range = state.world.range(region);
    if state.world.whole {
        state.spent.insert_range(range.clone());
    }
    protocol::mapped_anew(&mut state.map, &mut state.epochs[region], &range);
    state.world.registered[region] = true;
    state.queue.ready_run(range);
}
