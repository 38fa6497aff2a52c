//! What an earlier daemon knew of pages, held against what is there now.
//!
//! Owns the decision; see `tracker/inherit.rs` for why it is sound.

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;

use super::stale;
use crate::{
    map::PageMap,
    watch::queue::{Queue, runs},
};

/// What was seen of pages, in this order: the bytes, the page table, the marks.
#[derive(Debug, Default)]
pub(in crate::watch) struct Inherited {
    /// Not a hole.
    pub data: RoaringBitmap,
    /// Those with a fingerprint that are all zero.
    pub zero: RoaringBitmap,
    /// Present and write-protected.
    pub armed: RoaringBitmap,
    /// Present and writable.
    pub open: RoaringBitmap,
    /// Marked since the marks were last taken.
    pub marked: RoaringBitmap,
}

/// Confirms those of `pages` that still are what the map says. The others are stale. Returns these, and those of the confirmed that are unsettled.
pub(in crate::watch) fn confirm(
    map: &mut PageMap,
    queue: &mut Queue,
    pages: &RoaringBitmap,
    seen: &Inherited,
) -> (RoaringBitmap, RoaringBitmap) {
    let holds = |page: &u32| {
        let held = seen.armed.contains(*page) && seen.data.contains(*page);
        let agrees = match map.inherited_state(*page) {
            PageState::Absent => !seen.open.contains(*page) && !seen.data.contains(*page),
            PageState::Zero => held,
            PageState::Current => held && !seen.zero.contains(*page),
            PageState::Stale => false,
        };
        agrees && !seen.marked.contains(*page)
    };
    let confirmed: RoaringBitmap = pages.iter().filter(holds).collect();
    let failed = pages - &confirmed;
    stale(map, &failed);
    let confirmed_runs: Vec<_> = runs(&confirmed).collect();
    map.confirm(&confirmed_runs);
    // A fault may have been taken before the hooks were there: these are looked at again for a while, as what was read.
    for run in confirmed_runs {
        queue.published(run);
    }
    let unsettled = match (confirmed.min(), confirmed.max()) {
        (Some(first), Some(last)) => map.unsettled(first..last + 1) & &confirmed,
        _ => RoaringBitmap::new(),
    };
    (failed, unsettled)
}
