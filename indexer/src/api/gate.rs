//! How much costly work goes on at once. Owns the places: whoever finds none waits for a while, and is then told to come back.
//!
//! A place belongs to those who use it. Who has been sent nothing for a while, because he takes nothing, gives it up, and with it what he holds (a
//! [`Lease`]), but only if somebody waits for it: so readers that stop cannot shut out others.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use memdex_wire::problem::Code;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::problem::ApiError;

/// How long a request waits for a place where work takes as long as it takes.
const SHORT: Duration = Duration::from_secs(2);
/// And where it goes on as fast as its reader reads: many may stand in line, and each is served soon.
const LONG: Duration = Duration::from_secs(20);
/// Time between two looks of those who wait for who does not use his place.
const LOOK: Duration = Duration::from_millis(500);
/// A place that was not used for so long is taken back for somebody who waits: longer than a network needs to get over a loss.
pub(super) const UNUSED: Duration = Duration::from_secs(2);

/// Places for each kind of costly work.
#[derive(Clone)]
pub(super) struct Gates {
    pub(super) diffs: Gate,
    pub(super) known_diffs: Gate,
    pub(super) syncs: Gate,
    pub(super) verifies: Gate,
    pub(super) maps: Gate,
    pub(super) lookups: Gate,
    pub(super) contents: Gate,
    pub(super) events: Gate,
    pub(super) pictures: Gate,
}

/// Places for one kind.
#[derive(Clone)]
pub(super) struct Gate {
    what: &'static str,
    patience: Duration,
    places: Arc<Semaphore>,
    line: Arc<Line>,
}

/// Who waits at a gate, and what can be taken back for them.
#[derive(Default)]
struct Line {
    waiting: AtomicUsize,
    leases: Mutex<Vec<Weak<dyn Lease>>>,
}

/// What is held by somebody who may stop using it.
pub(super) trait Lease: Send + Sync {
    /// For how long it has not been used.
    fn unused(&self) -> Duration;
    /// Lets go of all of it, place included.
    fn take_back(&self);
}

/// A place; it is given back when this is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    line: Arc<Line>,
}

impl Place {
    /// Whether somebody waits for a place.
    pub(super) fn wanted(&self) -> bool {
        self.line.waiting.load(Relaxed) > 0
    }
}

impl Default for Gates {
    fn default() -> Self {
        let gate = |what, places, patience| Gate {
            what,
            patience,
            places: Arc::new(Semaphore::new(places)),
            line: Arc::default(),
        };
        Self {
            // Each holds the distinct fingerprints of a VM and has some requests under way.
            diffs: gate("diffs", 4, SHORT),
            // Each holds a snapshot, while one at a time works on a peer.
            known_diffs: gate("diffs", 32, SHORT),
            syncs: gate("syncs", 64, SHORT),
            verifies: gate("verifies", 4, SHORT),
            // Each holds a snapshot, and so old blocks of a map.
            maps: gate("readers of page maps", 16, LONG),
            // Each holds a body of up to 2 MiB, if it is JSON.
            lookups: gate("lookups", 16, LONG),
            contents: gate("readers of contents", 16, LONG),
            events: gate("event streams", 128, SHORT),
            // Those that read at the same time share a picture.
            pictures: gate("followers of contents", 256, SHORT),
        }
    }
}

impl Gate {
    /// A place, in the order of asking.
    pub(super) async fn enter(&self) -> Result<Place, ApiError> {
        let place = |permit| Place { _permit: permit, line: Arc::clone(&self.line) };
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place(permit));
        }
        let _waiting = Waiting::new(&self.line);
        let end = Instant::now() + self.patience;
        let permit = Arc::clone(&self.places).acquire_owned();
        tokio::pin!(permit);
        loop {
            match timeout(LOOK, permit.as_mut()).await {
                Ok(Ok(permit)) => return Ok(place(permit)),
                Err(_) if Instant::now() < end => self.line.take_back(),
                _ => break,
            }
        }
        let what = self.what;
        Err(ApiError::new(Code::Unavailable, format!("too many {what} at once: try again in a moment")))
    }

    /// From now on whoever waits may take this back, once it is not used. The place is to be in it.
    pub(super) fn lend<L: Lease + 'static>(&self, lease: &Arc<L>) {
        let lease: Arc<dyn Lease> = Arc::<L>::clone(lease);
        let mut leases = self.line.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|lease| lease.strong_count() > 0);
        leases.push(Arc::downgrade(&lease));
    }
}

impl Line {
    /// Takes back all that is not used.
    fn take_back(&self) {
        let unused: Vec<_> = {
            let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            leases.iter().filter_map(Weak::upgrade).filter(|lease| lease.unused() >= UNUSED).collect()
        };
        unused.iter().for_each(|lease| lease.take_back());
    }
}

/// Somebody who waits, until this is dropped.
struct Waiting(Arc<Line>);

impl Waiting {
    fn new(line: &Arc<Line>) -> Self {
        line.waiting.fetch_add(1, Relaxed);
        Self(Arc::clone(line))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Used once, when it was made.
    struct Used(Mutex<Option<Place>>, Instant);

    impl Lease for Used {
        fn unused(&self) -> Duration {
            self.1.elapsed()
        }

        fn take_back(&self) {
            self.0.lock().unwrap().take();
        }
    }

    fn gate() -> Gate {
        let places = Arc::new(Semaphore::new(1));
        Gate { what: "tests", patience: LONG, places, line: Arc::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_not_used_is_taken_back_for_who_waits_and_for_nobody_else() {
        let gate = gate();
        let place = gate.enter().await.unwrap();
        assert!(!place.wanted());
        let held = Arc::new(Used(Mutex::new(Some(place)), Instant::now()));
        gate.lend(&held);
        tokio::time::sleep(10 * UNUSED).await;
        assert!(held.0.lock().unwrap().is_some(), "nobody waits");
        let begun = Instant::now();
        let _second = gate.enter().await.unwrap();
        assert!(held.0.lock().unwrap().is_none() && begun.elapsed() < LONG);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_used_is_not_taken_back() {
        let gate = gate();
        let place = gate.enter().await.unwrap();
        let error = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await.err() }
        });
        tokio::time::sleep(LOOK).await;
        assert!(place.wanted());
        assert!(error.await.unwrap().is_some(), "it was told to come back");
        assert!(!place.wanted());
        drop(place);
        assert!(gate.enter().await.is_ok());
    }
}
