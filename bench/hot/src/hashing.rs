//! Hashing a batch of pages, the zero test included.

use indexer::fingerprint::{Hasher, Page};

use crate::{Hot, contents, work};

const BATCH: u32 = 64;

pub(crate) const PAGES: Hot = Hot {
    name: "hash",
    operation: "page of content, tested for zeros and hashed",
    operations: BATCH,
    prepare: || {
        let pages: Vec<Page> = (0..BATCH).map(contents::page).collect();
        batch(pages, BATCH)
    },
};

pub(crate) const ZERO_PAGES: Hot = Hot {
    name: "hash_zero",
    operation: "page of zeros, tested for them",
    operations: BATCH,
    prepare: || batch(vec![[0; size_of::<Page>()]; BATCH as usize], 0),
};

/// Fingerprints pages of which `expected` are not zero.
fn batch(pages: Vec<Page>, expected: u32) -> crate::Work {
    let (mut hasher, mut out) = (Hasher::new(), Vec::with_capacity(pages.len()));
    work(move || {
        hasher.fingerprint(&pages, &mut out);
        assert_eq!(out.iter().flatten().count(), expected as usize);
        (pages, out)
    })
}
