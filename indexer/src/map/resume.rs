//! Going on with the map that an earlier daemon left.
//!
//! Owns what becomes of its pages. None of them is shown as known at first: an *inherited* page counts as stale, with its last fingerprint, until the tracker
//! has looked whether it still holds ([`crate::watch::tracker`]) and has it confirmed here. The mark is a bit in the file, so a daemon that is killed before it
//! has looked at everything leaves no less to the next one than it found.

use std::sync::Arc;

use memdex_wire::{Fingerprint, page::PageState};
use roaring::RoaringBitmap;

use super::{
    CHUNK_PAGES, Layout, PageMap, Shelf,
    chunk::Chunk,
    counts::Counts,
    store::{Left, Owner, Store},
};
use crate::units::{Generation, PageRange};

impl PageMap {
    /// The map that was left, whose pages are numbered as in `layout`. `in_doubt`: whether direct I/O may have arrived unseen in pages
    /// last published as settled at this time (seconds of the monotonic clock).
    pub(crate) fn resume(left: Left, layout: Arc<Layout>, in_doubt: impl Fn(u32) -> bool) -> Self {
        let (generation, layout_since) = (left.generation, left.layout_since);
        let (store, left) = left.into_chunks();
        store.open();
        let mut map = Self {
            shelf: Shelf { store: Some(store), owned: true },
            layout,
            chunks: Vec::with_capacity(left.len()),
            touched: vec![Generation(generation.0 + 1); left.len()],
            counts: Counts::default(),
            // What the dead daemon was just doing may have been seen by nobody, or be half done: nothing is of its last generation any more.
            generation: Generation(generation.0 + 1),
            layout_since,
        };
        for (chunk, time) in left {
            let cell = map.shelf.cell(map.chunks.len());
            let chunk = Chunk::inherit(cell, chunk, in_doubt(time));
            chunk.count(&mut map.counts);
            map.chunks.push(chunk);
        }
        map.note_generation();
        map
    }

    /// Says what the map in the file is about; from here on the next daemon may believe it.
    pub(crate) fn seal(&self, owner: &Owner) {
        if let Some(store) = self.shelf.written_down() {
            store.seal(owner, self.pages());
        }
    }

    /// The file that the map is in, if it is in one.
    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        self.shelf.written_down()
    }

    /// How many pages an earlier daemon knew, that nobody has looked at yet.
    #[must_use]
    pub fn inherited_pages(&self) -> u64 {
        self.counts.inherited()
    }

    /// Those of `pages` that an earlier daemon knew, and that nobody has looked at yet.
    #[must_use]
    pub(crate) fn inherited(&self, pages: &RoaringBitmap) -> RoaringBitmap {
        if self.inherited_pages() == 0 {
            return RoaringBitmap::new();
        }
        let known =
            |page: &u32| self.chunks[*page as usize / CHUNK_PAGES].inherited(*page as usize % CHUNK_PAGES);
        pages.iter().take_while(|page| *page < self.pages()).filter(known).collect()
    }

    /// The state in which an earlier daemon left an inherited page; any other is stale.
    #[must_use]
    pub(crate) fn inherited_state(&self, page: u32) -> PageState {
        self.chunks[page as usize / CHUNK_PAGES].inherited_state(page as usize % CHUNK_PAGES)
    }

    /// What an earlier daemon knew of these pages holds.
    pub(crate) fn confirm(&mut self, runs: &[PageRange]) {
        let mut counts = self.counts;
        let mut touched = false;
        for run in runs {
            self.each_chunk(run.clone(), |chunk, cell, pages, _| {
                touched |= chunk.confirm(cell, pages, &mut counts);
            });
        }
        if touched {
            self.counts = counts;
            self.generation.0 += 1;
            self.note_generation();
        }
    }

    /// Every page that has a fingerprint, stale or not: what the reverse index has to know.
    pub(crate) fn fingerprints(&self) -> impl Iterator<Item = (u32, Fingerprint)> + '_ {
        self.chunks.iter().enumerate().flat_map(|(index, chunk)| {
            let first = (index * CHUNK_PAGES) as u32;
            chunk.fingerprints().map(move |(page, fingerprint)| (first + page as u32, fingerprint))
        })
    }
}
