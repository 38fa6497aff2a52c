//! All migrations of this host: those under way, and those that ended not long ago.
//!
//! Owns the list, its bounds, and that a VM is on its way only once. Never does anything with a migration.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use memdex_wire::{
    migration::{Outcome, Phase},
    transfer::Namer,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    MigrationOptions, destination::Incoming, in_flight::InFlight, journal::Journal, pace::HostPace,
    record::Record,
};
use crate::{host::Host, metrics::MigrationCounters, peer::Peers};

/// How long a migration is remembered after its end.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How long one is remembered whose source has not heard how it ended.
const OWED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Ended migrations that are remembered at most.
const MOST_ENDED: usize = 200;
/// Shortest beginning of an id that may stand for it.
const SHORTEST: usize = 4;
/// Migrations that may wait or be under way at once; more are refused.
const MOST: usize = 64;

/// Connections of sources that are talking, or yet to say what they want; more are refused.
const MOST_TALKING: usize = 2 * MOST;

/// What all migrations share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) peers: Arc<Peers>,
    pub(crate) in_flight: Arc<InFlight>,
    /// What contents are called in offers to this host: by a key that no guest knows.
    pub(crate) namer: Namer,
    pub(crate) journal: Journal,
    pub(crate) pace: Arc<HostPace>,
    pub(crate) places: Arc<Semaphore>,
    /// For control connections of incoming migrations.
    pub(super) talking: Arc<Semaphore>,
    /// Everything is to end.
    pub(crate) stop: CancellationToken,
    all: Mutex<Vec<Known>>,
    pub(super) figures: MigrationCounters,
    /// What the links to other hosts did lately, in bytes a second.
    rates: Mutex<HashMap<String, u64>>,
    pub(super) tasks: TaskTracker,
}

/// One that is under way, or has ended not long ago.
#[derive(Debug, Clone)]
pub(super) enum Known {
    Outgoing { record: Arc<Record>, abort: CancellationToken, vm: String },
    Incoming { incoming: Arc<Incoming>, vm: String },
}

impl Known {
    pub(super) fn record(&self) -> &Arc<Record> {
        match self {
            Self::Outgoing { record, .. } => record,
            Self::Incoming { incoming, .. } => &incoming.record,
        }
    }

    fn is_about(&self, vm_id: &str) -> bool {
        let (Self::Outgoing { vm, .. } | Self::Incoming { vm, .. }) = self;
        vm == vm_id && (self.record().ended().is_none() || self.is_clearing())
    }

    fn is_clearing(&self) -> bool {
        matches!(self, Self::Incoming { incoming, .. } if incoming.is_clearing())
    }
}

impl Shared {
    pub(super) fn new(
        host: Host,
        peers: Arc<Peers>,
        options: &MigrationOptions,
        stop: CancellationToken,
    ) -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the kernel gave random bytes when this daemon started");
        Self {
            host,
            peers,
            in_flight: Arc::default(),
            namer: Namer::new(key),
            journal: Journal::new(options.journal.clone()),
            pace: HostPace::new(options.max_bandwidth),
            places: Arc::new(Semaphore::new(options.at_once.max(1))),
            talking: Arc::new(Semaphore::new(MOST_TALKING)),
            stop,
            all: Mutex::default(),
            figures: MigrationCounters::default(),
            rates: Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, id: &str) -> Option<Known> {
        self.lock().iter().find(|known| known.record().id() == id).cloned()
    }

    /// One whose id begins so, if there is only one.
    pub(super) fn find_by(&self, beginning: &str) -> Option<Known> {
        if beginning.len() < SHORTEST {
            return self.find(beginning);
        }
        let all = self.lock();
        // A peer chooses its ids, and shall not make another one's ambiguous.
        if let Some(exact) = all.iter().find(|known| known.record().id() == beginning) {
            return Some(exact.clone());
        }
        let mut found = all.iter().filter(|known| known.record().id().starts_with(beginning));
        found.next().filter(|_| found.next().is_none()).cloned()
    }

    /// Whether a migration of this id leaves this host.
    pub(super) fn sends(&self, id: &str) -> bool {
        matches!(self.find(id), Some(Known::Outgoing { .. }))
    }

    /// Takes one in, unless the VM is on its way already.
    pub(super) fn admit(&self, new: Known, vm: &str) -> Result<(), String> {
        let mut all = self.lock();
        self.forget(&mut all);
        if self.stop.is_cancelled() {
            return Err("this memdexd is stopping".to_owned());
        }
        if let Some(other) = all.iter().find(|known| known.is_about(vm)) {
            let id = other.record().id();
            return Err(if other.is_clearing() {
                format!(
                    "what migration {id} left in the VM {vm} when this host's memdexd was killed is being cleared away: try again in a moment"
                )
            } else {
                format!("the VM {vm} is on its way already, see migration {id}")
            });
        }
        if let Some(other) = all.iter().find(|known| known.record().id() == new.record().id()) {
            return Err(match other {
                Known::Outgoing { .. } => {
                    "source and destination are the same host: a VM is moved to another one".to_owned()
                }
                Known::Incoming { .. } => "there is a migration of this id already".to_owned(),
            });
        }
        if all.iter().filter(|known| known.record().ended().is_none()).count() >= MOST {
            return Err(format!("{MOST} migrations are under way or waiting already: try again later"));
        }
        all.push(new);
        Ok(())
    }

    pub(crate) fn admit_incoming(&self, incoming: &Arc<Incoming>, vm: &str) -> Result<(), String> {
        self.admit(Known::Incoming { incoming: Arc::clone(incoming), vm: vm.to_owned() }, vm)
    }

    /// One of a daemon before this one.
    pub(crate) fn add_broken_off(&self, incoming: &Arc<Incoming>, vm: String) {
        self.lock().push(Known::Incoming { incoming: Arc::clone(incoming), vm });
    }

    /// Forgets what ended long ago.
    fn forget(&self, all: &mut Vec<Known>) {
        let ended = all.iter().filter(|known| known.record().ended().is_some()).count();
        let mut most = ended.saturating_sub(MOST_ENDED);
        all.retain(|known| {
            let Some(at) = known.record().ended().filter(|_| !known.is_clearing()) else { return true };
            let too_many = most > 0;
            most = most.saturating_sub(1);
            let old = at.elapsed() > REMEMBERED || too_many;
            // A source that has not heard how it ended may still come and ask.
            let owed = at.elapsed() < OWED && self.journal.has(known.record().id());
            if old && !owed {
                self.journal.remove(known.record().id());
            }
            !old || owed
        });
    }

    /// Counts one that has ended.
    pub(super) fn count(&self, record: &Record) {
        let document = record.document();
        match document.outcome {
            Some(Outcome::Completed) => self.figures.completed.add(1),
            Some(Outcome::Aborted) => self.figures.aborted.add(1),
            _ => self.figures.failed.add(1),
        }
        self.figures.wire_bytes.add(document.bytes.wire);
        self.figures.pages_sent.add(document.pages.sent);
        self.figures.pages_matched.add(document.pages.matched);
        self.figures.blackout_microseconds.add((document.blackout_ms * 1e3) as u64);
    }

    pub(super) fn remember_rate(&self, to: String, record: &Record) {
        let document = record.document();
        if document.phase == Phase::Completed && document.bytes.wire > 32 << 20 && document.total_ms > 0 {
            let rate = document.bytes.wire * 1000 / document.total_ms;
            self.rates.lock().unwrap_or_else(PoisonError::into_inner).insert(to, rate);
        }
    }

    pub(crate) fn last_rate(&self, to: &str) -> Option<u64> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).get(to).copied()
    }
}
