//! What is known of every page of a VM: states, fingerprints, generations; and the host's reverse index.
//!
//! Owns the answers, never talks to the kernel: the tracker says what it found, readers take snapshots.
//!
//! # How the map is held
//!
//! The map is a vector of chunks of 512 pages (2 MiB of guest memory). A chunk in which every page is alike and has no
//! fingerprint (never populated, all zero, not looked at yet) is two words; any other is a block behind an [`Arc`], on the heap or in a
//! file that outlives the daemon ([`store`]). A snapshot clones the vector, that is, some reference counts; a writer that meets a block which a snapshot still
//! holds copies that one block first ([`Arc::make_mut`]). So readers see one consistent moment for as long as they
//! like, writers never wait for them, and memory grows only by the blocks that really changed meanwhile.
//!
//! A page's *content* (what was last read) and its being *stale* (written since) are kept apart, because a page that was
//! written with the same bytes keeps its generation, and because `stale` pages still show their last fingerprint.
//!
//! # Settled and unsettled
//!
//! A page that was read while direct I/O was possible is *unsettled*: a request from before it was armed may still put bytes into it, and no witness
//! would tell. Users must be able to rely on `current`, so such a page is *shown* as stale, with its last fingerprint. But it is nearly always what
//! it was, so all who check what they use (diffs, look-ups by content, the rounds of a migration) go by the state that it *holds*. It is a bit in the byte
//! that each page has anyway, goes with the first write that is seen, and is taken away by the tracker when the page has been read once more.

mod block;
mod cell;
mod chunk;
mod counts;
mod index;
mod layout;
mod resume;
mod snapshot;
mod store;

use std::sync::Arc;

use memdex_wire::{Fingerprint, page::PageState, vm::PageCounts};
use roaring::RoaringBitmap;

use crate::units::{Generation, PageRange};

pub(crate) use block::{CHUNK_PAGES, PageBits};
pub(crate) use cell::monotonic_seconds;
use cell::{Cell, Shelf};
use chunk::{Chunk, Publication};
pub use chunk::{Content, PageView};
use counts::Counts;
pub use index::{ContentIndex, IndexStatistics, MapId, Place, Sorter};
pub use layout::{Layout, LayoutRegion};
pub use snapshot::{MapSnapshot, Records};
pub(crate) use store::{DirectIo, Store};
pub use store::{Left, MapFolder, Owner};

/// A page whose content is not what it was: what the reverse index has to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The page.
    pub page: u32,
    /// Its fingerprint before.
    pub before: Option<Fingerprint>,
    /// Its fingerprint now.
    pub after: Option<Fingerprint>,
}

/// The pages of one VM. Written by its tracker alone.
#[derive(Debug, Clone)]
pub struct PageMap {
    /// First, so that it is dropped first.
    shelf: Shelf,
    layout: Arc<Layout>,
    chunks: Vec<Chunk>,
    /// For each chunk a generation since which nothing in it has changed.
    touched: Vec<Generation>,
    counts: Counts,
    generation: Generation,
    /// Snapshots from before this generation speak of other page numbers.
    layout_since: Generation,
}

impl PageMap {
    /// A map in which nothing is known: every page is stale.
    #[must_use]
    pub fn new(layout: Arc<Layout>) -> Self {
        Self::on(None, layout)
    }

    /// What is shown of a VM until its tracker has begun. Its generation is older than that of any map.
    #[must_use]
    pub(crate) fn unread(layout: Arc<Layout>) -> Self {
        Self::beginning(None, layout, Generation(0))
    }

    /// The same as [`PageMap::new`] in a file that outlives the daemon, if there is one. What it is about has to be said with [`PageMap::seal`].
    #[must_use]
    pub(crate) fn on(store: Option<Arc<Store>>, layout: Arc<Layout>) -> Self {
        // Milliseconds since 1970: a map that begins anew (the daemon was restarted) has later generations than the one
        // before, so that an old `ETag` or `since` never matches by chance. It grows by less than one a millisecond.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self::beginning(store, layout, Generation(now.as_millis() as u64))
    }

    fn beginning(store: Option<Arc<Store>>, layout: Arc<Layout>, generation: Generation) -> Self {
        let pages = layout.pages();
        if let Some(store) = &store {
            store.open();
        }
        let mut map = Self {
            shelf: Shelf { store, owned: true },
            layout,
            chunks: Vec::new(),
            touched: Vec::new(),
            counts: Counts::default(),
            generation,
            layout_since: generation,
        };
        map.extend(pages);
        map.note_generation();
        if let Some(store) = map.shelf.written_down() {
            store.set_layout_since(generation);
        }
        map
    }

    fn note_generation(&self) {
        if let Some(store) = self.shelf.written_down() {
            store.set_generation(self.generation);
        }
    }

    /// The regions and their page numbers.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.counts.as_held().total as u32
    }

    /// Counts every change.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The generation of what is published next.
    #[must_use]
    pub fn next_generation(&self) -> Generation {
        Generation(self.generation.0 + 1)
    }

    /// Number of pages in each state, as they are shown.
    #[must_use]
    pub fn counts(&self) -> PageCounts {
        self.counts.as_shown()
    }

    /// The same with unsettled pages counted as what they held when they were read.
    #[must_use]
    pub fn held_counts(&self) -> PageCounts {
        self.counts.as_held()
    }

    /// What is known of one page.
    ///
    /// # Panics
    /// If the VM has no such page.
    #[must_use]
    pub fn page(&self, page: u32) -> PageView {
        assert!(page < self.pages(), "page {page} of {}", self.pages());
        self.chunks[page as usize / CHUNK_PAGES].page(page as usize % CHUNK_PAGES)
    }

    /// Whether a page holds this content: it was read, and no write has been seen since, settled or not.
    #[must_use]
    pub(crate) fn holds(&self, page: u32, fingerprint: &Fingerprint) -> bool {
        let chunk = self.chunks.get(page as usize / CHUNK_PAGES);
        chunk.is_some_and(|chunk| chunk.holds(page as usize % CHUNK_PAGES, fingerprint))
    }

    /// Says that pages may have been written: they are stale from now on, whatever is known of them.
    /// Pages outside the map are passed over. Returns how many were not stale before.
    pub fn mark_stale(&mut self, runs: &[PageRange]) -> u64 {
        let mut newly = Counts::default();
        for run in runs {
            self.each_chunk(run.clone(), |chunk, cell, pages, _| chunk.mark_stale(cell, pages, &mut newly));
        }
        let marked = self.counts.gone_stale(&newly);
        if marked > 0 {
            self.generation.0 += 1;
            self.note_generation();
        }
        marked
    }

    /// Says that these pages are settled from now on, or unsettled. Stale and absent ones stay as they are.
    pub fn set_settled(&mut self, runs: &[PageRange], settled: bool) {
        let mut counts = self.counts;
        let mut touched = false;
        for run in runs {
            self.each_chunk(run.clone(), |chunk, cell, pages, _| {
                touched |= chunk.settle(cell, pages, settled, &mut counts);
            });
        }
        if touched {
            self.counts = counts;
            self.generation.0 += 1;
            self.note_generation();
        }
    }

    /// Publishes what was read: `contents[i]` for page `first + i`, `None` for a page that could not be settled and
    /// stays as it is. The caller has to have kept the order *arm, read, hash, check* — see [`crate::watch`].
    /// Appends to `changes` what the reverse index must follow.
    ///
    /// `generation` is what [`PageMap::next_generation`] said: once for all runs of a batch, however scattered they are. `settled`: no direct I/O
    /// from before the pages were armed can be under way.
    pub fn publish(
        &mut self,
        generation: Generation,
        settled: bool,
        first: u32,
        contents: &[Option<Content>],
        changes: &mut Vec<Change>,
    ) {
        let how = Publication { generation, settled };
        let mut counts = self.counts;
        let mut touched = false;
        let end = first + contents.len() as u32;
        self.each_chunk(first..end, |chunk, cell, pages, page| {
            let contents = &contents[(page - first) as usize..][..pages.len()];
            touched |= chunk.publish(cell, pages.start, contents, how, &mut counts, changes);
        });
        if touched {
            self.counts = counts;
            self.generation = generation;
            self.note_generation();
        }
    }

    /// Replaces the layout: the first `keep` pages stay as they are, all others start unknown.
    /// Returns the changes that the reverse index must follow.
    pub fn relayout(&mut self, layout: Arc<Layout>, keep: u32) -> Vec<Change> {
        let mut changes = Vec::new();
        let keep = keep.min(self.pages()).min(layout.pages());
        let snapshot = self.snapshot();
        for (page, view) in snapshot.views(keep..self.pages()) {
            if let Some(before) = view.fingerprint {
                changes.push(Change { page, before: Some(before), after: None });
            }
        }
        // Nobody who comes after may believe the file until the tracker has said again what it is about.
        if let Some(store) = self.shelf.written_down() {
            store.unseal();
        }
        self.chunks.truncate((keep as usize).div_ceil(CHUNK_PAGES));
        self.touched.truncate(self.chunks.len());
        let tail = keep as usize % CHUNK_PAGES;
        let last = self.chunks.len().saturating_sub(1);
        if let Some(chunk) = self.chunks.last_mut().filter(|_| tail > 0) {
            chunk.truncate(self.shelf.cell(last), tail);
        }
        let pages = layout.pages();
        self.layout = layout;
        self.counts = Counts::default();
        for chunk in &self.chunks {
            chunk.count(&mut self.counts);
        }
        self.extend(pages);
        self.generation.0 += 1;
        self.layout_since = self.generation;
        self.note_generation();
        if let Some(store) = self.shelf.written_down() {
            store.set_layout_since(self.layout_since);
        }
        changes
    }

    /// The pages of a run that hold one of the given states: unsettled ones count as what they held when they were read.
    #[must_use]
    pub fn in_state(&self, pages: PageRange, states: &[PageState]) -> RoaringBitmap {
        let mut found = RoaringBitmap::new();
        let (mut page, end) = (pages.start as usize, pages.end.min(self.pages()) as usize);
        while page < end {
            let (chunk, start) = (&self.chunks[page / CHUNK_PAGES], page % CHUNK_PAGES);
            let len = (CHUNK_PAGES - start).min(end - page);
            if let Some(state) = chunk.uniform_state() {
                if states.contains(&state) {
                    found.insert_range(page as u32..(page + len) as u32);
                }
            } else {
                let hits = (0..len).filter(|i| states.contains(&chunk.state(start + i)));
                found.extend(hits.map(|i| (page + i) as u32));
            }
            page += len;
        }
        found
    }

    /// The unsettled pages of a run.
    #[must_use]
    pub fn unsettled(&self, pages: PageRange) -> RoaringBitmap {
        let mut found = RoaringBitmap::new();
        if self.counts().unsettled == 0 {
            return found;
        }
        let (mut page, end) = (pages.start as usize, pages.end.min(self.pages()) as usize);
        while page < end {
            let (chunk, start) = (&self.chunks[page / CHUNK_PAGES], page % CHUNK_PAGES);
            let len = (CHUNK_PAGES - start).min(end - page);
            if chunk.uniform_state().is_none() {
                let hits = (0..len).filter(|i| chunk.unsettled(start + i));
                found.extend(hits.map(|i| (page + i) as u32));
            } else if chunk.unsettled(start) {
                found.insert_range(page as u32..(page + len) as u32);
            }
            page += len;
        }
        found
    }

    /// Snapshots from before this generation speak of other page numbers.
    #[must_use]
    pub(crate) fn layout_since(&self) -> Generation {
        self.layout_since
    }

    /// The chunks in which anything may have changed in this generation or later.
    pub(crate) fn touched_since(&self, since: Generation) -> impl Iterator<Item = usize> + '_ {
        self.touched.iter().enumerate().filter(move |(_, touched)| **touched >= since).map(|(chunk, _)| chunk)
    }

    /// What is known of the pages of a chunk, and which of them changed in this generation or later; `None` if none can have a fingerprint.
    pub(crate) fn bits(&self, chunk: usize, since: Generation) -> Option<PageBits> {
        self.chunks[chunk].bits(since)
    }

    /// A consistent picture of this moment.
    #[must_use]
    pub fn snapshot(&self) -> MapSnapshot {
        MapSnapshot::new(self.clone())
    }

    /// Makes every block that only this map holds as small as it can be. Cheap enough for now and then.
    pub fn compact(&mut self) {
        for (index, chunk) in self.chunks.iter_mut().enumerate() {
            chunk.compact(self.shelf.cell(index));
        }
    }

    /// Appends unknown pages until there are `pages`.
    fn extend(&mut self, pages: u32) {
        let (pages, have) = (pages as usize, self.pages() as usize);
        let mut missing = pages.saturating_sub(have);
        self.counts.add_unknown(missing as u64);
        if let Some(store) = self.shelf.written_down() {
            store.reserve(pages.max(have).div_ceil(CHUNK_PAGES));
        }
        let last = self.chunks.len().saturating_sub(1);
        if let Some(chunk) = self.chunks.last_mut() {
            let room = (CHUNK_PAGES - chunk.len()).min(missing);
            chunk.grow(self.shelf.cell(last), room);
            missing -= room;
        }
        while missing > 0 {
            let len = missing.min(CHUNK_PAGES);
            let cell = self.shelf.cell(self.chunks.len());
            self.chunks.push(Chunk::unknown(cell, len, self.generation));
            self.touched.push(self.generation);
            missing -= len;
        }
    }

    /// Calls `f` with each chunk of a run, the range within the chunk, and the page number where that begins.
    fn each_chunk(
        &mut self,
        run: PageRange,
        mut f: impl FnMut(&mut Chunk, Cell<'_>, std::ops::Range<usize>, u32),
    ) {
        let end = run.end.min(self.pages()) as usize;
        let mut page = run.start as usize;
        // Rather one too late, if nothing turns out to be new.
        let next = self.next_generation();
        while page < end {
            let (chunk, start) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
            let len = (CHUNK_PAGES - start).min(end - page);
            self.touched[chunk] = next;
            f(&mut self.chunks[chunk], self.shelf.cell(chunk), start..start + len, page as u32);
            page += len;
        }
    }
}

#[cfg(test)]
mod tests;
