//! Many contents at once: which of them this host holds, and copies of them.
//!
//! Owns the order of the work. Contents are looked up some thousands at a time, so that each lock is taken once for many of them and the processor
//! waits for many of the places in memory at the same time. What the reverse index says is a hint here as everywhere: a place counts only if its map
//! says the same, and a copy is hashed before it is handed out.

use std::{io::IoSliceMut, ops::Range, sync::Arc};

use memdex_wire::{Fingerprint, PAGE_SIZE};

use super::{Host, Shared};
use crate::{
    fingerprint::{Hasher, Page},
    map::{Place, Sorter},
};

/// Most pages read at once.
const RUN: usize = 64;

/// Looks for contents; keeps its working memory between calls.
#[derive(Debug)]
pub struct Finder {
    shared: Arc<Shared>,
    sorter: Sorter,
    /// A place for each content, and further ones for those of which it is not true.
    first: Vec<(u32, Place)>,
    more: Vec<(u32, Place)>,
    /// Of one source: number of the content, and page.
    pages: Vec<(u32, u32)>,
    found: Vec<bool>,
    located: Vec<Option<Place>>,
    copied: Vec<u32>,
    digests: Vec<Fingerprint>,
    hasher: Hasher,
}

impl Host {
    /// Somebody who looks for contents on this host.
    #[must_use]
    pub fn finder(&self) -> Finder {
        Finder {
            shared: Arc::clone(self.shared()),
            sorter: Sorter::default(),
            first: Vec::new(),
            more: Vec::new(),
            pages: Vec::new(),
            found: Vec::new(),
            located: Vec::new(),
            copied: Vec::new(),
            digests: Vec::new(),
            hasher: Hasher::new(),
        }
    }
}

impl Finder {
    /// Calls `held` with the numbers of the contents that a current page of this host holds, in any order and some of them more than once.
    pub fn held(&mut self, asked: &[Fingerprint], mut held: impl FnMut(usize)) {
        self.find(asked, &mut |number, _| held(number as usize));
    }

    /// Finds places of contents that are to be copied then. No VM is held by that: a place that is gone by then is looked for again.
    pub fn locate(&mut self, asked: &[Fingerprint]) {
        let mut located = std::mem::take(&mut self.located);
        located.clear();
        located.resize(asked.len(), None);
        self.find(asked, &mut |number, place| located[number as usize] = Some(place));
        self.located = located;
    }

    /// Appends copies of those contents of `numbers` that this host has to `out`, in order, each behind `head` bytes that are left to the caller. `asked` is what was
    /// located. Returns their numbers. The copies were hashed: they are what was asked for, whatever became of the pages since they were indexed.
    pub fn copy(
        &mut self,
        asked: &[Fingerprint],
        numbers: Range<usize>,
        head: usize,
        out: &mut Vec<u8>,
    ) -> &[u32] {
        let (begin, record) = (out.len(), head + PAGE_SIZE);
        self.copied.clear();
        let located = &self.located;
        let there = |number: &usize| located.get(*number).is_some_and(Option::is_some);
        self.copied.extend(numbers.filter(there).map(|number| number as u32));
        out.resize(begin + self.copied.len() * record, 0);
        // Pages in a row are read at once.
        let mut records = out[begin..].chunks_exact_mut(record);
        let mut next = 0;
        while let Some(place) = self.copied.get(next).and_then(|number| self.place(*number)) {
            let follows = |(i, number): &(usize, &u32)| {
                self.place(**number)
                    .is_some_and(|other| other.map == place.map && other.page == place.page + *i as u32)
            };
            let run = self.copied[next..].iter().take(RUN).enumerate().take_while(follows).count();
            let mut pages: Vec<_> =
                records.by_ref().take(run).map(|record| IoSliceMut::new(&mut record[head..])).collect();
            // What could not be read has another digest, and is looked for elsewhere.
            if let Some(source) = self.shared.registry.by_map(place.map) {
                source.read_run(place.page, &mut pages);
            }
            next += run;
        }
        self.digests.clear();
        let pages = out[begin..]
            .chunks_exact(record)
            .map(|record| record[head..].first_chunk::<PAGE_SIZE>().expect("a record ends with a page"));
        self.hasher.hash_each(pages, &mut self.digests);
        self.drop_changed(asked, head, begin, out);
        &self.copied
    }

    fn place(&self, number: u32) -> Option<Place> {
        self.located.get(number as usize).copied().flatten()
    }

    /// Of what was copied to `out` keeps what has the right digest; what has not is looked for elsewhere.
    fn drop_changed(&mut self, asked: &[Fingerprint], head: usize, begin: usize, out: &mut Vec<u8>) {
        let record = head + PAGE_SIZE;
        let mut kept = 0;
        for i in 0..self.copied.len() {
            let (number, start) = (self.copied[i], begin + i * record);
            let wanted = &asked[number as usize];
            if self.digests[i] != *wanted && !self.copy_one(wanted, page_of(&mut out[start + head..])) {
                continue;
            }
            if kept != i {
                out.copy_within(start..start + record, begin + kept * record);
            }
            self.copied[kept] = number;
            kept += 1;
        }
        self.copied.truncate(kept);
        out.truncate(begin + kept * record);
    }

    /// Copies one content from wherever it is; hashed.
    fn copy_one(&self, wanted: &Fingerprint, page: &mut Page) -> bool {
        self.shared.copy_content(wanted.prefix(), |content| content == wanted, page).is_some()
    }

    /// Calls `each` with number and place of each content that is held.
    fn find(&mut self, asked: &[Fingerprint], each: &mut dyn FnMut(u32, Place)) {
        let Self { shared, sorter, first, more, pages, found, .. } = self;
        first.clear();
        more.clear();
        let mut last = None;
        shared.index.candidates_of(asked.iter().map(Fingerprint::prefix), sorter, |number, place| {
            // Many VMs may hold the same content; one place that does is enough.
            if last.replace(number) == Some(number) {
                more.push((number, place));
            } else {
                first.push((number, place));
            }
        });
        found.clear();
        found.resize(asked.len(), false);
        for places in [first, more] {
            places.retain(|(number, _)| !found[*number as usize]);
            places.sort_unstable_by_key(|(_, place)| place.map);
            for run in places.chunk_by(|(_, one), (_, other)| one.map == other.map) {
                let map = run[0].1.map;
                let Some(source) = shared.registry.by_map(map) else { continue };
                pages.clear();
                pages.extend(run.iter().map(|(number, place)| (*number, place.page)));
                source.hold(asked, pages, &mut |number, page| {
                    found[number as usize] = true;
                    each(number, Place { map, page });
                });
            }
        }
    }
}

fn page_of(bytes: &mut [u8]) -> &mut Page {
    bytes.first_chunk_mut().expect("room was made for a page")
}
