//! Somebody else maps the VM's RAM, or has stopped to: what follows at once.
//!
//! Owns the doubt from the moment in which eBPF sees a process map a RAM file writable until discovery has looked through all mappings and
//! says by its own doubts who it is. What was known before may have been written unseen from then on, so all of it is stale and read again,
//! when the doubt begins and once more when it has gone.

use std::{
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::{Duration, Instant},
};

use super::Tracker;

/// Discovery has found out within this time, and two sweeps: it is told to look through all mappings in its next sweep.
const FOUND_OUT: Duration = Duration::from_secs(3);

impl Tracker {
    /// Another process is mapping a RAM file writable; its writes begin after `since`.
    pub(super) fn foreign_mapping(&mut self, since: Instant) {
        let already = self.foreign.replace((Instant::now(), self.shared.sweeps.load(SeqCst))).is_some();
        self.shared.mappings_changed.store(true, Relaxed);
        if !already && self.descriptor.doubts.is_empty() {
            tracing::info!(vm = %self.vm.id(), "another process maps this VM's RAM writable");
            self.looks.distrusted(since);
        }
        self.know_nothing();
        self.update_status();
    }

    /// Whether that was a moment ago, and what discovery says now may be from before it.
    pub(super) fn mapped_lately(&self) -> bool {
        self.foreign.is_some()
    }

    pub(super) fn tick_foreign(&mut self) {
        // Two: one may have been under way. And what they found has to have reached us.
        let swept = self.shared.sweeps.load(SeqCst);
        let heard = Arc::ptr_eq(&self.vm.descriptor(), &self.descriptor);
        if heard && self.foreign.is_some_and(|(at, sweeps)| at.elapsed() >= FOUND_OUT && swept >= sweeps + 2)
        {
            self.foreign = None;
            if !self.doubted() {
                // It has gone again, and may have written while it was there.
                self.know_nothing();
            }
            self.update_status();
        }
    }

    /// Everything is stale, and read at the next opportunity.
    pub(super) fn know_nothing(&mut self) {
        for region in 0..self.regions.len() {
            let range = self.regions[region].range();
            self.stale_run(&range);
        }
        self.read_again();
        self.last_rehash = Instant::now();
        self.begin_reading();
    }
}
