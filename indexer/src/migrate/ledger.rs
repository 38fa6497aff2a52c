//! What each page of a VM holds at the destination, as one of the two ends knows it.
//!
//! Owns contents by page number and the digest over all of them. The source's ledger says what it has told and the destination has confirmed, the
//! destination's what it has put in place and hashed. If both ends agree on the digest, and the source's ledger is what its map
//! says, then every byte has arrived.

use memdex_wire::{
    Fingerprint,
    transfer::{DIGEST_PAGES, ZERO, chunk_digest, root},
};

/// Contents of pages, [`ZERO`] for a page of zeros. Chunks that are all zeros take no memory.
#[derive(Debug)]
pub struct Ledger {
    pages: u32,
    /// Those that are not zeros.
    populated: u32,
    chunks: Vec<Chunk>,
    /// Until a page changes.
    root: Option<[u8; 32]>,
}

#[derive(Debug, Default)]
struct Chunk {
    /// `None`: all zeros.
    contents: Option<Box<[Fingerprint; DIGEST_PAGES]>>,
    /// Until a page changes.
    digest: Option<[u8; 32]>,
}

impl Ledger {
    /// A VM of this many pages, all zeros.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        let mut chunks = Vec::new();
        chunks.resize_with((pages as usize).div_ceil(DIGEST_PAGES), Chunk::default);
        Self { pages, populated: 0, chunks, root: None }
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// What a page holds.
    ///
    /// # Panics
    /// If there is no such page.
    #[must_use]
    pub fn get(&self, page: u32) -> Fingerprint {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let contents = self.chunks[page as usize / DIGEST_PAGES].contents.as_ref();
        contents.map_or(ZERO, |contents| contents[page as usize % DIGEST_PAGES])
    }

    /// Says what a page holds. Returns what it held before.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn set(&mut self, page: u32, content: Fingerprint) -> Fingerprint {
        let before = self.get(page);
        if before != content {
            let chunk = &mut self.chunks[page as usize / DIGEST_PAGES];
            let contents = chunk.contents.get_or_insert_with(|| Box::new([ZERO; DIGEST_PAGES]));
            contents[page as usize % DIGEST_PAGES] = content;
            chunk.digest = None;
            self.root = None;
            self.populated = self.populated + u32::from(before == ZERO) - u32::from(content == ZERO);
        }
        before
    }

    /// How many pages are zeros.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        u64::from(self.pages - self.populated)
    }

    /// The pages that are not zeros.
    pub fn populated(&self) -> impl Iterator<Item = (u32, Fingerprint)> + '_ {
        let chunks = self.chunks.iter().enumerate();
        chunks.filter_map(|(index, chunk)| Some((index, chunk.contents.as_ref()?))).flat_map(
            |(index, contents)| {
                let pages = contents.iter().enumerate().filter(|(_, content)| **content != ZERO);
                pages.map(move |(at, content)| ((index * DIGEST_PAGES + at) as u32, *content))
            },
        )
    }

    /// The digest over all pages. Only chunks that have changed since the last call are digested again.
    pub fn root(&mut self) -> [u8; 32] {
        if let Some(root) = self.root {
            return root;
        }
        let pages = self.pages as usize;
        let mut zeros = None;
        for (index, chunk) in self.chunks.iter_mut().enumerate() {
            let len = DIGEST_PAGES.min(pages - index * DIGEST_PAGES);
            if chunk.digest.is_some() {
                continue;
            }
            chunk.digest = Some(match &chunk.contents {
                Some(contents) => chunk_digest(&contents[..len]),
                None if len == DIGEST_PAGES => {
                    *zeros.get_or_insert_with(|| chunk_digest(&[ZERO; DIGEST_PAGES]))
                }
                None => chunk_digest(&vec![ZERO; len]),
            });
        }
        *self
            .root
            .insert(root(u64::from(self.pages), self.chunks.iter().filter_map(|chunk| chunk.digest.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_digest_depends_on_contents_alone(
            pages in 1u32..2000,
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<bool>()), 0..100),
        ) {
            let mut ledger = Ledger::new(pages);
            let mut model = vec![ZERO; pages as usize];
            for (at, content, digest) in steps {
                let page = at.index(pages as usize);
                let content = Fingerprint::new([content; 32]);
                prop_assert_eq!(ledger.set(page as u32, content), model[page]);
                model[page] = content;
                if digest {
                    ledger.root();
                }
            }
            // A second one, made in another order and without digests in between.
            let mut other = Ledger::new(pages);
            for (page, content) in model.iter().enumerate().rev() {
                other.set(page as u32, *content);
            }
            prop_assert_eq!(ledger.root(), other.root());
            let populated: Vec<_> = ledger.populated().collect();
            let expected: Vec<_> = model.iter().enumerate().filter(|(_, content)| **content != ZERO)
                .map(|(page, content)| (page as u32, *content)).collect();
            prop_assert_eq!(ledger.zeros(), u64::from(pages) - expected.len() as u64);
            prop_assert_eq!(populated, expected);
            let page = pages / 2;
            let kept = other.get(page);
            other.set(page, Fingerprint::new([9; 32]));
            prop_assert_ne!(ledger.root(), other.root());
            other.set(page, kept);
            prop_assert_eq!(ledger.root(), other.root());
        }
    }

    #[test]
    fn the_number_of_pages_counts() {
        assert_ne!(Ledger::new(511).root(), Ledger::new(512).root());
    }
}
