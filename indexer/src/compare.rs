//! What another host lacks of a VM, asked of the host itself. Owns the questions and the counting.
//!
//! Each distinct fingerprint crosses the wire once, however many pages have it, and no page is read: the map answers. Memory is bounded: a VM with more
//! current pages than [`PASS`] is done in several passes, each over its own share of all fingerprints.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use memdex_wire::{
    Fingerprint,
    diff::DiffCounts,
    problem::{Code, Problem},
};
use migrate_client::Client;

use crate::{map::MapSnapshot, peer};

/// Current pages in a pass: some hundred MiB of working memory, and 8 GiB of guest memory.
const PASS: u64 = 2 << 20;

/// Pages of a VM by what would have to be done with them to bring them to the host `peer`. `place` is kept for as long as anything of that goes on, also if nobody waits
/// for it any more.
///
/// # Errors
/// If the peer cannot be asked.
pub async fn compare<P: Send + Sync + 'static>(
    peer: &Client,
    snapshot: &MapSnapshot,
    place: &Arc<P>,
) -> Result<DiffCounts, Problem> {
    // An unsettled page is nearly always what it was, and whoever copies it hashes it again.
    let counts = snapshot.held_counts();
    let matched = matched(peer, snapshot, place).await?;
    let missing = counts.current.checked_sub(matched).ok_or_else(|| {
        Problem::new(Code::Internal, "the map does not add up: see the daemon's log and report it")
    })?;
    let zero = counts.absent + counts.zero;
    Ok(DiffCounts { total: counts.total, zero, matched, missing, stale: counts.stale })
}

/// Counts the current pages whose content the peer holds.
async fn matched<P: Send + Sync + 'static>(
    peer: &Client,
    snapshot: &MapSnapshot,
    place: &Arc<P>,
) -> Result<u64, Problem> {
    let passes = snapshot.held_counts().current.div_ceil(PASS);
    // Random, so that a guest cannot choose contents that all fall into one pass or one bucket.
    let hasher = RandomState::new();
    let mut matched = 0;
    for pass in 0..passes {
        let (snapshot, hasher, place) = (snapshot.clone(), hasher.clone(), Arc::clone(place));
        let pass = move || {
            let found = distinct(&snapshot, hasher, pass, passes);
            drop(place);
            found
        };
        let (fingerprints, pages) = tokio::task::spawn_blocking(pass).await.map_err(|_| {
            Problem::new(Code::Unavailable, "this memdexd is stopping: try again when it is back")
        })?;
        let held = peer.lookup(&fingerprints).await.map_err(|error| peer::problem(&error))?;
        matched += held.iter().map(|i| pages.get(i as usize).map_or(0, |n| u64::from(*n))).sum::<u64>();
    }
    Ok(matched)
}

/// The fingerprints of one pass, each once, and how many current pages have each.
fn distinct(
    snapshot: &MapSnapshot,
    hasher: RandomState,
    pass: u64,
    passes: u64,
) -> (Vec<Fingerprint>, Vec<u32>) {
    let share = hasher.clone();
    let most = snapshot.held_counts().current.div_ceil(passes.max(1)) as usize;
    let mut seen: HashMap<Fingerprint, u32, RandomState> = HashMap::with_capacity_and_hasher(most, hasher);
    for fingerprint in snapshot.current_fingerprints() {
        // The high bits choose the pass, so that the table's use of the low ones is not disturbed.
        if passes == 1 || (share.hash_one(fingerprint) >> 32) % passes == pass {
            *seen.entry(fingerprint).or_default() += 1;
        }
    }
    seen.into_iter().unzip()
}
