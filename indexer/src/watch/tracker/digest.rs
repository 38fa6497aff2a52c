//! Reading and hashing the pages of a batch on the pool: cut into pieces, in place where the runs are long.

use std::ops::Range;

use memdex_wire::Fingerprint;
use rayon::prelude::*;

use crate::{
    fingerprint::{Hasher, Page, is_zero, pool::HashPool},
    memory::{MemoryError, RegionMemory, Spent},
    units::PageRange,
};

/// Pages in one piece of work of a hashing thread, hashed in place.
pub(super) const PIECE: u32 = 1024;
/// The same for pages that are copied together: each hashing thread keeps room for so many.
const GATHERED: u32 = 128;
/// A run of at least this many pages is hashed in place; shorter ones are gathered, so that every SIMD lane is used.
const IN_PLACE: u32 = 128;

/// With so few hashing threads others unmap what they have read.
const UNMAPPED_BY_OTHERS: usize = 2;

/// Digests of runs of a region's pages, in order; `None` for a page of zeros.
pub(super) fn digest(
    pool: &HashPool,
    memory: &RegionMemory,
    runs: &[PageRange],
) -> Result<Vec<Option<Fingerprint>>, MemoryError> {
    pool.install(|| digest_parallel(memory, runs)).map(|digests| digests.fingerprints)
}

/// What came of reading a batch.
#[derive(Debug)]
pub(super) struct Digests {
    pub fingerprints: Vec<Option<Fingerprint>>,
    /// For the caller to drop, when it has time.
    pub spent: Vec<Spent>,
}

/// The same, called on a thread of the pool.
pub(super) fn digest_parallel(memory: &RegionMemory, runs: &[PageRange]) -> Result<Digests, MemoryError> {
    // One tracker has the time to unmap what one or two threads have hashed, and not what more of them have.
    let keep = rayon::current_num_threads() <= UNMAPPED_BY_OTHERS;
    let digest = |piece: &Vec<PageRange>| {
        digest_spent(memory, piece).map(|(digests, spent)| (digests, spent.filter(|_| keep)))
    };
    let parts: Result<Vec<_>, _> = pieces(runs).par_iter().map(digest).collect();
    let (mut digests, spent): (Vec<_>, Vec<_>) = parts?.into_iter().unzip();
    let fingerprints = if digests.len() == 1 { digests.swap_remove(0) } else { digests.concat() };
    Ok(Digests { fingerprints, spent: spent.into_iter().flatten().collect() })
}

/// Splits runs into pieces of at most [`PIECE`] pages, keeping their order. A long run is a piece of its own.
fn pieces(runs: &[PageRange]) -> Vec<Vec<PageRange>> {
    let mut pieces: Vec<Vec<PageRange>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let mut rest = run.clone();
        while !rest.is_empty() {
            let long = rest.end - rest.start >= IN_PLACE;
            if long || room == 0 {
                pieces.push(Vec::new());
                room = if long { PIECE } else { GATHERED };
            }
            let len = (rest.end - rest.start).min(room);
            let piece = pieces.last_mut().expect("one was pushed when there was no room");
            piece.push(rest.start..rest.start + len);
            rest.start += len;
            room = if long { 0 } else { room - len };
        }
    }
    pieces
}

/// Whether pages of these runs hold anything but zeros, in order: much like [`digest`], but the bytes are looked at only up to the first that is not zero.
pub(super) fn any_bytes(
    pool: &HashPool,
    memory: &RegionMemory,
    runs: &[PageRange],
) -> Result<Vec<bool>, MemoryError> {
    let look = |piece: &Vec<PageRange>| {
        thread_local! {
            static SCRATCH: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut out = Vec::new();
            for run in piece {
                let see = |pages: &[Page]| out.extend(pages.iter().map(|page| !is_zero(page)));
                memory.with_pages(run.clone(), scratch, see)?;
            }
            Ok(out)
        })
    };
    let parts: Result<Vec<_>, _> = pool.install(|| pieces(runs).par_iter().map(look).collect());
    parts.map(|parts| parts.concat())
}

/// The same on the calling thread alone, for a few pages.
pub(super) fn digest_piece(
    memory: &RegionMemory,
    runs: &[PageRange],
) -> Result<Vec<Option<Fingerprint>>, MemoryError> {
    digest_spent(memory, runs).map(|(digests, _)| digests)
}

fn digest_spent(
    memory: &RegionMemory,
    runs: &[PageRange],
) -> Result<(Vec<Option<Fingerprint>>, Option<Spent>), MemoryError> {
    thread_local! {
        static WORKSPACE: std::cell::RefCell<(Hasher, Vec<u8>)> = std::cell::RefCell::new((Hasher::new(), Vec::new()));
    }
    WORKSPACE.with_borrow_mut(|(hasher, scratch)| {
        let mut out = Vec::new();
        if let [run] = runs
            && run.end - run.start >= IN_PLACE
        {
            let hash = |pages: &[Page]| hasher.fingerprint(pages, &mut out);
            let ((), spent) = memory.with_pages_spent(run.clone(), scratch, hash)?;
            return Ok((out, spent));
        }
        let pages: usize = runs.iter().map(Range::len).sum();
        scratch.resize(pages * size_of::<Page>(), 0);
        let mut rest = scratch.as_mut_slice();
        for run in runs {
            let (part, after) = rest.split_at_mut(run.len() * size_of::<Page>());
            memory.read(run.clone(), part)?;
            rest = after;
        }
        hasher.fingerprint(scratch.as_chunks().0, &mut out);
        Ok((out, None))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_hold_all_pages_in_order(lens in prop::collection::vec((0u32..300, 1u32..5000), 0..30)) {
            let mut at = 0;
            let runs: Vec<_> = lens
                .iter()
                .map(|(gap, len)| {
                    let start = at + gap + 1;
                    at = start + len;
                    start..at
                })
                .collect();
            let pieces = pieces(&runs);
            let flat: Vec<u32> = pieces.iter().flatten().cloned().flatten().collect();
            prop_assert_eq!(flat, runs.iter().cloned().flatten().collect::<Vec<_>>());
            prop_assert!(pieces.iter().all(|piece| piece.iter().map(Range::len).sum::<usize>() <= PIECE as usize));
        }
    }
}
