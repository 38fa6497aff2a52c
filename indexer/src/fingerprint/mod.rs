//! The name of a page's content: BLAKE3-256 of its 4096 bytes, many pages at once.
//!
//! Owns batching and the zero test. Never does I/O, and never decides what a digest means.

mod batch;
pub mod pool;
mod zero;

use memdex_wire::{Fingerprint, PAGE_SIZE};

use self::batch::Batch;
pub use self::zero::is_zero;

/// The bytes of a page.
pub type Page = [u8; PAGE_SIZE];

/// Fingerprints pages; keeps its working memory between calls. One per thread.
#[derive(Debug)]
pub struct Hasher {
    batch: Batch,
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher {
    /// For the best instruction set of this processor.
    #[must_use]
    pub fn new() -> Self {
        Self { batch: Batch::new(blake3::platform::Platform::detect()) }
    }

    /// Appends an element per page: `None` if it is all zero, else the BLAKE3-256 of its bytes (exactly `blake3::hash`).
    ///
    /// The pages may be written by others meanwhile; a digest of such a page is of no use, but that is all.
    pub fn fingerprint(&mut self, pages: &[Page], out: &mut Vec<Option<Fingerprint>>) {
        let first = out.len();
        out.resize(first + pages.len(), None);
        self.batch.hash(pages.iter().enumerate().filter(|(_, page)| !is_zero(page)), |index, digest| {
            out[first + index] = Some(Fingerprint::new(digest));
        });
    }

    /// Appends the digest of each page, zero or not: the plain rate of hashing, for measurements.
    pub fn hash_all(&mut self, pages: &[Page], out: &mut Vec<Fingerprint>) {
        self.hash_each(pages.iter(), out);
    }

    /// The same for pages that do not lie side by side.
    pub fn hash_each<'a>(&mut self, pages: impl Iterator<Item = &'a Page>, out: &mut Vec<Fingerprint>) {
        self.batch.hash(pages.enumerate(), |_, digest| out.push(Fingerprint::new(digest)));
    }
}

#[cfg(test)]
mod tests;
