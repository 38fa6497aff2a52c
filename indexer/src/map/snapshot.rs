//! One consistent moment of a map, for readers.

use std::{ops::Range, sync::Arc};

use memdex_wire::{
    Fingerprint,
    page::{PageRecord, PageState},
    vm::PageCounts,
};
use roaring::RoaringBitmap;

use super::{
    Layout, PageView,
    chunk::{CHUNK_PAGES, Chunk},
};
use crate::units::Generation;

/// A map as it stood at one moment. Cheap to make and to hold; see [`crate::map`].
#[derive(Debug, Clone)]
pub struct MapSnapshot {
    layout: Arc<Layout>,
    chunks: Arc<Vec<Chunk>>,
    counts: PageCounts,
    generation: Generation,
    layout_since: Generation,
}

impl MapSnapshot {
    pub(super) fn new(
        layout: Arc<Layout>,
        chunks: Vec<Chunk>,
        counts: PageCounts,
        generation: Generation,
        layout_since: Generation,
    ) -> Self {
        Self { layout, chunks: Arc::new(chunks), counts, generation, layout_since }
    }

    /// The generation of this moment.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Pages in each state.
    #[must_use]
    pub fn counts(&self) -> PageCounts {
        self.counts
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.counts.total as u32
    }

    /// The regions and their page numbers.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// What is known of a run of pages.
    pub fn views(&self, pages: Range<u32>) -> impl Iterator<Item = (u32, PageView)> + '_ {
        (pages.start..pages.end.min(self.pages())).map(|page| (page, self.view(page)))
    }

    fn view(&self, page: u32) -> PageView {
        self.chunks[page as usize / CHUNK_PAGES].page(page as usize % CHUNK_PAGES)
    }

    /// The records of the map in page order. With `since`: of the pages whose content changed after that generation,
    /// and of every page that is stale now (its content is in doubt). If the pages were numbered anew after `since`,
    /// all of them.
    pub fn records(&self, since: Option<Generation>) -> impl Iterator<Item = PageRecord> + Send + 'static {
        let this = self.clone();
        let since = self.since(since);
        (0..self.pages()).filter_map(move |page| {
            let view = this.view(page);
            wanted(&view, since).then(|| this.layout.record(page, view))
        })
    }

    /// How many records [`MapSnapshot::records`] gives.
    #[must_use]
    pub fn record_count(&self, since: Option<Generation>) -> u64 {
        match self.since(since) {
            None => self.counts.total,
            since => (0..self.pages()).filter(|page| wanted(&self.view(*page), since)).count() as u64,
        }
    }

    /// The fingerprints of all current pages, one for each page.
    pub fn current_fingerprints(&self) -> impl Iterator<Item = Fingerprint> + '_ {
        self.chunks
            .iter()
            .filter(|chunk| chunk.uniform_state().is_none())
            .flat_map(|chunk| (0..chunk.len()).map(|index| chunk.page(index)))
            .filter(|view| view.state == PageState::Current)
            .filter_map(|view| view.fingerprint)
    }

    /// The pages whose content changed after a generation.
    #[must_use]
    pub fn changed_since(&self, since: Generation) -> RoaringBitmap {
        self.select(|view| view.generation > since)
    }

    /// The pages of a run that are in one of the given states.
    #[must_use]
    pub fn in_state(&self, pages: Range<u32>, states: &[PageState]) -> RoaringBitmap {
        super::in_state(&self.chunks, pages.start..pages.end.min(self.pages()), states)
    }

    fn select(&self, keep: impl Fn(&PageView) -> bool) -> RoaringBitmap {
        (0..self.pages()).filter(|page| keep(&self.view(*page))).collect()
    }

    fn since(&self, since: Option<Generation>) -> Option<Generation> {
        since.filter(|since| *since >= self.layout_since && *since <= self.generation)
    }
}

fn wanted(view: &PageView, since: Option<Generation>) -> bool {
    since.is_none_or(|since| view.generation > since || view.state == PageState::Stale)
}
