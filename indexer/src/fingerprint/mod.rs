//! Names for page contents: BLAKE3 of many pages at once.
//!
//! Owns the digest and the zero test; never does I/O and never asks where a page comes from.

mod batch;
pub mod pool;

use memdex_wire::{Fingerprint, PAGE_SIZE};

pub use batch::Batch;

/// The bytes of a page.
pub type Page = [u8; PAGE_SIZE];

/// Fingerprints pages. Holds no state between calls but its knowledge of the CPU.
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
    /// A hasher for this CPU.
    #[must_use]
    pub fn new() -> Self {
        Self { batch: Batch::detect() }
    }

    /// Appends to `out`, for each page in order, its fingerprint, or `None` if it is all zero.
    ///
    /// Pages of zeros are passed over while the others are collected, so that a few pages between many zeros fill the
    /// SIMD lanes as well as a solid block does.
    pub fn fingerprint(&mut self, pages: &[Page], out: &mut Vec<Option<Fingerprint>>) {
        let first = out.len();
        out.resize(first + pages.len(), None);
        let out = &mut out[first..];
        let Some(any) = pages.first() else { return };
        let mut group = [any; Batch::PAGES];
        let mut places = [0; Batch::PAGES];
        let mut filled = 0;
        for (place, page) in pages.iter().enumerate() {
            if is_zero(page) {
                continue;
            }
            (group[filled], places[filled]) = (page, place);
            filled += 1;
            if filled == Batch::PAGES {
                self.batch.hash(&group, |i, digest| out[places[i]] = Some(Fingerprint::new(digest)));
                filled = 0;
            }
        }
        self.batch.hash(&group[..filled], |i, digest| out[places[i]] = Some(Fingerprint::new(digest)));
    }
}

/// Whether a page is all zero. Stops at the first block that is not, which is nearly always the first one there is.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    page.as_chunks::<256>().0.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(seed: u64) -> Page {
        let mut page = [0; PAGE_SIZE];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
        page
    }

    proptest! {
        #[test]
        fn digests_are_those_of_blake3_whatever_the_number_of_pages_and_zeros(
            kinds in prop::collection::vec(prop::option::weighted(0.7, any::<u64>()), 0..90)
        ) {
            let pages: Vec<Page> = kinds.iter().map(|kind| kind.map_or([0; PAGE_SIZE], page)).collect();
            let mut out = vec![None];
            Hasher::new().fingerprint(&pages, &mut out);
            let expected: Vec<_> = pages
                .iter()
                .zip(&kinds)
                .map(|(page, kind)| kind.map(|_| Fingerprint::new(*blake3::hash(page).as_bytes())))
                .collect();
            prop_assert_eq!(&out[1..], &expected[..]);
        }

        #[test]
        fn a_single_bit_anywhere_is_seen(at in 0..PAGE_SIZE, bit in 0..8u32) {
            let mut page = [0; PAGE_SIZE];
            page[at] = 1 << bit;
            prop_assert!(!is_zero(&page));
        }
    }

    #[test]
    fn zeros_are_zero() {
        assert!(is_zero(&[0; PAGE_SIZE]));
    }
}
