//! One batch of pages on its way from stale to current; its type says how far it has come.
//!
//! `Batch<Fresh>` (stale in the map) → *arm* → `Batch<Armed>` → *read and hash* → `Batch<Hashed>` → *check* → `Batch<Checked>` →
//! *publish*. Owns the order and what follows from each answer; asking the kernel is up to who holds the batch.

use memdex_wire::Fingerprint;
use roaring::RoaringBitmap;

use super::stale;
use crate::{
    map::{Change, Content, PageMap},
    units::PageRange,
    watch::queue::{Queue, runs},
};

/// Pages of one region that are settled together.
#[derive(Debug, Clone)]
pub(in crate::watch) struct Batch<Phase> {
    region: usize,
    /// The region's epoch when the pages were armed: which mapping they are of.
    epoch: u64,
    pages: RoaringBitmap,
    phase: Phase,
}

/// To be armed.
#[derive(Debug, Clone, Hash)]
pub(in crate::watch) struct Fresh;

/// Armed, to be read.
#[derive(Debug, Clone)]
pub(in crate::watch) struct Armed {
    /// The pages that hold anything, in order.
    data: Vec<PageRange>,
    /// Pages that could not be armed.
    refused: RoaringBitmap,
}

/// Read, to be checked.
#[derive(Debug, Clone)]
pub(in crate::watch) struct Hashed {
    armed: Armed,
    digests: Vec<Option<Fingerprint>>,
}

/// To be published, all but the doubtful.
#[derive(Debug, Clone)]
pub(in crate::watch) struct Checked {
    data: Vec<PageRange>,
    digests: Vec<Option<Fingerprint>>,
    written: RoaringBitmap,
    doubtful: RoaringBitmap,
}

impl<Phase> Batch<Phase> {
    pub(in crate::watch) fn region(&self) -> usize {
        self.region
    }

    pub(in crate::watch) fn pages(&self) -> &RoaringBitmap {
        &self.pages
    }

    /// The epoch of the mapping that the pages are of.
    #[cfg(test)]
    pub(in crate::watch) fn armed_in(&self) -> u64 {
        self.epoch
    }

    fn next<Next>(self, phase: impl FnOnce(Phase) -> Next) -> Batch<Next> {
        Batch { region: self.region, epoch: self.epoch, pages: self.pages, phase: phase(self.phase) }
    }
}

impl Batch<Fresh> {
    pub(in crate::watch) fn new(region: usize, epoch: u64, pages: RoaringBitmap) -> Self {
        Self { region, epoch, pages, phase: Fresh }
    }

    /// The pages are going to be armed. That wipes out what the page table knows of earlier writes: from here on only a publication
    /// makes a page current. Returns how many were not stale before.
    pub(in crate::watch) fn make_stale(&self, map: &mut PageMap) -> u64 {
        stale(map, &self.pages)
    }

    /// The pages of `data` have been armed, but for the refused; the others hold nothing. A hole needs no arming: any access puts an
    /// unprotected page there, which a scan reports as written.
    pub(in crate::watch) fn armed(self, data: Vec<PageRange>, refused: RoaringBitmap) -> Batch<Armed> {
        self.next(|Fresh| Armed { data, refused })
    }

    /// Gives the pages back.
    pub(in crate::watch) fn into_pages(self) -> RoaringBitmap {
        self.pages
    }
}

impl Batch<Armed> {
    /// The pages have been read; `epoch` is that of their region now. Gives them back if they could not be read, or if something else is
    /// mapped there since they were armed, or nothing: then what was read is of no use, and a scan of what is there now says nothing of it.
    pub(in crate::watch) fn hashed<E>(
        self,
        epoch: u64,
        digests: Result<Vec<Option<Fingerprint>>, E>,
    ) -> Result<Batch<Hashed>, (RoaringBitmap, Option<E>)> {
        if epoch != self.epoch {
            return Err((self.pages, None));
        }
        match digests {
            Ok(digests) => Ok(self.next(|armed| Hashed { armed, digests })),
            Err(error) => Err((self.pages, Some(error))),
        }
    }
}

impl Batch<Hashed> {
    /// Number of pages that were read.
    pub(in crate::watch) fn read(&self) -> u64 {
        self.phase.digests.len() as u64
    }

    /// A scan after the last byte was read found `written`; then the marks are looked at, without taking them. Either is doubt.
    pub(in crate::watch) fn checked(
        self,
        mut written: RoaringBitmap,
        with_marks: impl FnOnce(&RoaringBitmap) -> RoaringBitmap,
    ) -> Batch<Checked> {
        written &= &self.pages;
        let marked = with_marks(&self.pages);
        self.next(|Hashed { armed: Armed { data, refused }, digests }| {
            let doubtful = refused | &written | marked;
            Checked { data, digests, written, doubtful }
        })
    }
}

impl Batch<Checked> {
    /// Publishes what is not in doubt; appends to `changes` what the reverse index must follow. With `settled` nothing that was under way
    /// before they were armed can change them any more. Returns the pages that could not be settled.
    pub(in crate::watch) fn publish(
        self,
        settled: bool,
        map: &mut PageMap,
        queue: &mut Queue,
        changes: &mut Vec<Change>,
    ) -> RoaringBitmap {
        let Checked { data, digests, written, doubtful } = self.phase;
        let mut data = data.into_iter().flatten().zip(digests).peekable();
        let generation = map.next_generation();
        let mut contents = Vec::new();
        for run in runs(&self.pages) {
            contents.clear();
            contents.extend(run.clone().map(|page| {
                let content = match data.next_if(|(at, _)| *at == page) {
                    None => Content::Absent,
                    Some((_, None)) => Content::Zero,
                    Some((_, Some(fingerprint))) => Content::Fingerprint(fingerprint),
                };
                (!doubtful.contains(page)).then_some(content)
            }));
            map.publish(generation, settled, run.start, &contents, changes);
        }
        for run in runs(&(&self.pages - &doubtful)) {
            queue.published(run);
        }
        queue.written(&written);
        doubtful
    }
}

/// For the model checker, which has to recognise a state that it has seen.
#[cfg(test)]
mod identity {
    use std::hash::{Hash, Hasher};

    use super::{Armed, Batch, Hashed};

    impl<Phase: Hash> Hash for Batch<Phase> {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (self.region, self.epoch, self.pages.len()).hash(state);
            self.pages.iter().for_each(|page| page.hash(state));
            self.phase.hash(state);
        }
    }

    impl Hash for Armed {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.data.hash(state);
            self.refused.len().hash(state);
            self.refused.iter().for_each(|page| page.hash(state));
        }
    }

    impl Hash for Hashed {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.armed.hash(state);
            self.digests.hash(state);
        }
    }
}
