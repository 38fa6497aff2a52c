//! How much costly work goes on at once. Owns the places; whoever finds none within a moment is told to come back.

use std::{sync::Arc, time::Duration};

use memdex_wire::problem::Code;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::problem::ApiError;

/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_secs(2);

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
    places: Arc<Semaphore>,
}

impl Default for Gates {
    fn default() -> Self {
        let gate = |what, places| Gate { what, places: Arc::new(Semaphore::new(places)) };
        Self {
            // Each holds the distinct fingerprints of a VM and has some requests under way.
            diffs: gate("diffs", 4),
            // Each holds a snapshot, while one at a time works on a peer.
            known_diffs: gate("diffs", 32),
            syncs: gate("syncs", 64),
            verifies: gate("verifies", 4),
            // Each holds a snapshot, and so old blocks of a map.
            maps: gate("readers of page maps", 16),
            // Each holds a body of up to 2 MiB.
            lookups: gate("lookups", 16),
            contents: gate("readers of contents", 16),
            events: gate("event streams", 128),
            // Those that read at the same time share a picture.
            pictures: gate("followers of contents", 256),
        }
    }
}

impl Gate {
    /// A place, kept until the permit is dropped.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        match timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => {
                let what = self.what;
                Err(ApiError::new(
                    Code::Unavailable,
                    format!("too many {what} at once: try again in a moment"),
                ))
            }
        }
    }
}
