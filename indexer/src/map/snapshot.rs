//! One consistent moment of a map, for readers.

use std::{
    ops::{Deref, Range},
    sync::Arc,
};

use memdex_wire::{
    Fingerprint,
    page::{PageRecord, PageState},
};
use roaring::RoaringBitmap;

use super::{PageMap, PageView};
use crate::units::Generation;

/// A map as it stood at one moment. Cheap to make and to hold; see [`crate::map`].
#[derive(Debug, Clone)]
pub struct MapSnapshot(Arc<PageMap>);

impl Deref for MapSnapshot {
    type Target = PageMap;

    fn deref(&self) -> &PageMap {
        &self.0
    }
}

impl MapSnapshot {
    pub(super) fn new(map: PageMap) -> Self {
        Self(Arc::new(map))
    }

    /// What is known of a run of pages.
    pub fn views(&self, pages: Range<u32>) -> impl Iterator<Item = (u32, PageView)> + '_ {
        (pages.start..pages.end.min(self.pages())).map(|page| (page, self.page(page)))
    }

    /// The records of the map in page order. With `since`: of the pages whose content changed after that generation,
    /// and of every page that is stale now (its content is in doubt). If the pages were numbered anew after `since`,
    /// all of them.
    pub fn records(&self, since: Option<Generation>) -> impl Iterator<Item = PageRecord> + Send + 'static {
        let this = self.clone();
        let since = self.since(since);
        (0..self.pages()).filter_map(move |page| {
            let view = this.page(page);
            wanted(&view, since).then(|| this.layout().record(page, view))
        })
    }

    /// How many records [`MapSnapshot::records`] gives.
    #[must_use]
    pub fn record_count(&self, since: Option<Generation>) -> u64 {
        match self.since(since) {
            None => self.counts().total,
            since => (0..self.pages()).filter(|page| wanted(&self.page(*page), since)).count() as u64,
        }
    }

    /// The fingerprints of all pages that hold one, settled or not; one for each page.
    pub fn current_fingerprints(&self) -> impl Iterator<Item = Fingerprint> + '_ {
        self.chunks
            .iter()
            .filter(|chunk| chunk.uniform_state().is_none())
            .flat_map(|chunk| (0..chunk.len()).map(|index| chunk.page(index)))
            .filter(|view| view.held == PageState::Current)
            .filter_map(|view| view.fingerprint)
    }

    /// The pages whose content changed after a generation.
    #[must_use]
    pub fn changed_since(&self, since: Generation) -> RoaringBitmap {
        self.select(|view| view.generation > since)
    }

    fn select(&self, keep: impl Fn(&PageView) -> bool) -> RoaringBitmap {
        (0..self.pages()).filter(|page| keep(&self.page(*page))).collect()
    }

    fn since(&self, since: Option<Generation>) -> Option<Generation> {
        since.filter(|since| *since >= self.layout_since && *since <= self.generation())
    }
}

fn wanted(view: &PageView, since: Option<Generation>) -> bool {
    since.is_none_or(|since| view.generation > since || view.state == PageState::Stale)
}
