//! What came to this host and went, for those who listen.
//!
//! Owns the last [`KEPT`] changes and their numbers. Nothing is noted as long as nobody listens, nor has done so within [`LINGER`]: a host without followers pays one load of a flag for each page
//! that changes.
//!
//! # Why no change is missed
//!
//! A picture is made of what the maps of all VMs show, a map at a time, while trackers go on. A tracker publishes in its map first and in the reverse index, which notes the change here, second; a
//! listener takes its position first and looks at the maps second. So a change is in the map that is looked at, or has a number after the position, or both: then it is applied to a picture
//! that shows it already, and does nothing. *Going* is noted only when the last place that is known has gone, under the lock of the index's shard, so that coming and going of one content are in the
//! order in which they happened; *coming* is noted for each place, or a content that two VMs hold one after the other could be missed in both maps.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use memdex_wire::picture::{Change, MAX_CHANGES, Position};

/// Changes that are kept: 8 MiB. Who is further behind is sent a new picture.
pub(crate) const KEPT: usize = 1 << 20;

/// How long changes are noted for a listener that has lost its connection.
const LINGER: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct ChangeLog {
    epoch: u64,
    linger: Duration,
    listened: AtomicBool,
    /// Held for nanoseconds.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    changes: VecDeque<Change>,
    /// Number of the change that comes next.
    next: u64,
    listeners: usize,
    /// When the last listener went.
    alone: Option<Instant>,
}

/// The changes after a position are not known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

/// Somebody listens as long as this exists.
#[derive(Debug)]
pub(crate) struct Listening(std::sync::Arc<ChangeLog>);

impl ChangeLog {
    /// A log that nobody listens to. `epoch` tells it from that of any other daemon.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self { epoch, linger: LINGER, listened: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Notes that a content has come or gone.
    pub fn note(&self, change: Change) {
        // The flag is set before any map is looked at, and maps have locks: see the module.
        if !self.listened.load(Relaxed) {
            return;
        }
        let mut state = self.lock();
        if state.listeners == 0 && state.alone.is_none_or(|since| since.elapsed() >= self.linger) {
            // From here on changes are not noted: nobody may go on from an earlier position.
            self.listened.store(false, Relaxed);
            state.changes = VecDeque::new();
            state.next += 1;
            return;
        }
        if state.changes.len() == KEPT {
            state.changes.pop_front();
        }
        state.changes.push_back(change);
        state.next += 1;
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn listened(&self) -> bool {
        self.listened.load(Relaxed)
    }

    /// Begins to listen.
    pub(crate) fn listen(self: &std::sync::Arc<Self>) -> Listening {
        let mut state = self.lock();
        state.listeners += 1;
        self.listened.store(true, Relaxed);
        drop(state);
        Listening(std::sync::Arc::clone(self))
    }

    /// Now.
    pub(crate) fn position(&self) -> Position {
        Position { epoch: self.epoch, sequence: self.lock().next }
    }

    /// Up to [`MAX_CHANGES`] changes after a position, and the position after them.
    pub(crate) fn since(&self, position: Position) -> Result<(Position, Vec<Change>), Lost> {
        let state = self.lock();
        let first = state.next - state.changes.len() as u64;
        if position.epoch != self.epoch || !(first..=state.next).contains(&position.sequence) {
            return Err(Lost);
        }
        let skip = (position.sequence - first) as usize;
        let changes: Vec<Change> = state.changes.iter().skip(skip).take(MAX_CHANGES).copied().collect();
        let sequence = position.sequence + changes.len() as u64;
        Ok((Position { sequence, ..position }, changes))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.listeners -= 1;
        state.alone = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn come(n: u64) -> Change {
        Change::new(n << 1, true)
    }

    #[test]
    fn a_listener_hears_everything_after_its_position() {
        let log = Arc::new(ChangeLog { linger: Duration::ZERO, ..ChangeLog::new(7) });
        log.note(come(1));
        let before = log.position();
        assert_eq!(before, Position { epoch: 7, sequence: 0 }, "nobody listened");
        let listening = log.listen();
        let begun = log.position();
        (2..5).for_each(|n| log.note(come(n)));
        let (after, changes) = log.since(begun).unwrap();
        assert_eq!(changes, [come(2), come(3), come(4)]);
        assert_eq!(log.since(after), Ok((after, Vec::new())));
        assert_eq!(log.since(Position { epoch: 8, ..after }), Err(Lost));
        assert_eq!(log.since(Position { sequence: after.sequence + 1, ..after }), Err(Lost));
        // Once nobody has listened for long, changes go unnoted, and no position from before is good.
        let late = log.position();
        drop(listening);
        log.note(come(9));
        assert!(!log.listened());
        let _listening = log.listen();
        assert_eq!(log.since(late), Err(Lost));
    }

    #[test]
    fn a_listener_that_comes_back_soon_has_missed_nothing() {
        let log = Arc::new(ChangeLog::new(7));
        let listening = log.listen();
        let position = log.position();
        drop(listening);
        log.note(come(1));
        let _listening = log.listen();
        assert_eq!(log.since(position).unwrap().1, [come(1)]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_who_is_too_slow_is_told() {
        let log = Arc::new(ChangeLog::new(7));
        let _listening = log.listen();
        let begun = log.position();
        (0..KEPT as u64).for_each(|n| log.note(come(n)));
        let (mut position, mut heard) = (begun, 0);
        while heard < KEPT as u64 {
            let (next, changes) = log.since(position).unwrap();
            assert!(changes.len() <= MAX_CHANGES && changes[0] == come(heard));
            heard += changes.len() as u64;
            position = next;
        }
        log.note(come(1));
        assert_eq!(log.since(begun), Err(Lost));
        assert_eq!(log.since(position).unwrap().1, [come(1)]);
        assert_eq!(log.lock().changes.len(), KEPT);
    }
}
