//! What the tracker asks marks, page table and RAM files, over the modelled kernel: the marks, the scans, the audit.

use roaring::RoaringBitmap;

use super::{
    super::protocol::{self, Findings, Sighting},
    Break, System,
    driver::{Look, written},
    layout::mapped_anew,
    state::{At, State},
    world::{Discard, World},
};
use crate::units::PageRange;

impl System {
    pub(super) fn take_marks(&self, state: &mut State) {
        let State { world, map, queue, full_scan, spent, .. } = state;
        if !self.marks {
            queue.discards_done();
            return;
        }
        let (mut written, mut discarded) = (Vec::new(), Vec::new());
        for (page, at) in (0..).zip(&mut world.pages) {
            if std::mem::take(&mut at.written) {
                written.push(page..page + 1);
            }
            if std::mem::take(&mut at.discarded) {
                discarded.push(page..page + 1);
            }
        }
        if self.broken == Break::SpendMark {
            let (pages, none): (RoaringBitmap, _) = (written.iter().cloned().flatten().collect(), Vec::new());
            protocol::stale(map, &pages);
            queue.ready(&pages);
            written = none;
        }
        for run in &written {
            spent.insert_range(run.clone());
        }
        protocol::marked(map, queue, &mut written, &mut discarded);
        if std::mem::take(&mut world.overflowed) {
            full_scan.want();
        }
        if std::mem::take(&mut world.discards_overflowed) {
            protocol::may_be_discarded(map, queue, 0..map.pages());
        }
        if queue.awaits_discards() && (world.discard == Discard::None || self.broken == Break::ReadDiscarding)
        {
            queue.discards_done();
        }
    }

    pub(super) fn scan(&self, state: &mut State, look: Look) {
        let recheck = look != Look::Awaited;
        let steered = protocol::steered(&state.queue, recheck);
        let full = !self.marks || state.full_scan.wanted() || look == Look::All;
        for region in 0..state.epochs.len() {
            let range = state.world.range(region);
            let mut pages = steered.clone();
            pages.remove_range(..range.start);
            pages.remove_range(range.end..);
            if full {
                pages.insert_range(range.clone());
            }
            if !state.world.registered[region] && (recheck || !pages.is_empty()) {
                mapped_anew(state, region);
                continue;
            }
            let written = written(&state.world, &pages);
            protocol::found_written(&mut state.map, &mut state.queue, &written);
        }
        if full {
            state.full_scan.done();
        }
        state.at = match look {
            Look::LastChance => At::Rotate,
            Look::Awaited | Look::Recent | Look::All => At::Loop,
        };
    }

    pub(super) fn audit(&self, state: &mut State) {
        let all = 0..state.map.pages();
        let mut seen = match std::mem::replace(&mut state.at, At::Loop) {
            At::Audit(seen) => seen,
            At::Loop | At::Scan | At::Rotate | At::Round(_) => {
                for region in 0..state.epochs.len() {
                    if !state.world.registered[region] {
                        mapped_anew(state, region);
                    }
                }
                state.at = At::Audit(self.sighting(&state.world, all));
                return;
            }
        };
        let later = self.sighting(&state.world, all.clone());
        (seen.data, seen.zero) = (later.data, later.zero);
        let mut found = Findings::default();
        found.compare(&state.map, all, &seen);
        self.take_marks(state);
        protocol::audited(&mut state.map, &mut state.queue, &found, |forgotten| forgotten);
    }

    /// What an audit sees: where nobody tells of discards it looks at the bytes, too.
    pub(super) fn sighting(&self, world: &World, window: PageRange) -> Sighting {
        let mut seen = world.sighting(window);
        if self.marks || self.broken == Break::TrustProtection {
            seen.zero.clear();
        }
        seen
    }
}
