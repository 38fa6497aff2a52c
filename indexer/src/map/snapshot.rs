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

use super::{PageMap, PageView, block::CHUNK_PAGES};
use crate::units::{Generation, bytes};

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
    #[must_use]
    pub fn records(&self, since: Option<Generation>) -> Records {
        Records { snapshot: self.clone(), since: self.since(since), next: 0, region: 0 }
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

/// The records of a map, as far as they have not been taken yet.
#[derive(Debug)]
pub struct Records {
    snapshot: MapSnapshot,
    since: Option<Generation>,
    next: u32,
    /// The region in which the next page lies, or one before it.
    region: usize,
}

impl Records {
    /// Whether every page has been looked at.
    #[must_use]
    pub fn done(&self) -> bool {
        self.next >= self.snapshot.pages()
    }

    /// Looks at the next `pages` pages, and calls `each` with the records of those that are wanted.
    pub fn some(&mut self, pages: u32, mut each: impl FnMut(PageRecord)) {
        let map = &*self.snapshot;
        let end = self.next.saturating_add(pages).min(map.pages());
        let regions = map.layout().regions();
        while self.next < end {
            while self.next >= regions[self.region].range().end {
                self.region += 1;
            }
            // Pages of one chunk and one region: what is the same for all of them is looked up once.
            let (region, number) = (&regions[self.region], self.next as usize / CHUNK_PAGES);
            let chunk = &map.chunks[number];
            let stop = end.min(region.range().end).min(((number + 1) * CHUNK_PAGES) as u32);
            for page in self.next..stop {
                let view = chunk.page(page as usize % CHUNK_PAGES);
                if wanted(&view, self.since) {
                    each(PageRecord {
                        page: u64::from(page),
                        region: self.region as u32,
                        offset: region.offset + bytes(u64::from(page - region.first_page)),
                        state: view.state,
                        fingerprint: view.fingerprint,
                        generation: view.generation.0,
                    });
                }
            }
            self.next = stop;
        }
    }
}

impl Iterator for Records {
    type Item = PageRecord;

    fn next(&mut self) -> Option<PageRecord> {
        let mut found = None;
        while found.is_none() && !self.done() {
            self.some(1, |record| found = Some(record));
        }
        found
    }
}

fn wanted(view: &PageView, since: Option<Generation>) -> bool {
    since.is_none_or(|since| view.generation > since || view.state == PageState::Stale)
}
