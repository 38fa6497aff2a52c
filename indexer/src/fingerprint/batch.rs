//! BLAKE3 of many pages at once.
//!
//! A page has four chunks of 1024 bytes, and [`blake3::hash`] can give only those four to the SIMD unit, which has 8 or 16 lanes. Many
//! pages fill it: chunk *k* of every page in one call (they have the same counter, *k*), then the two lower parent nodes of every page, then all roots.
//! The digests are those of [`blake3::hash`]; only the order of the work is another.
//!
//! `blake3::platform` is public but not part of that crate's promises: the version is pinned and the tests compare.

use blake3::{IncrementCounter, OUT_LEN, platform::Platform};
use memdex_wire::PAGE_SIZE;

use super::Page;

const CHUNK: usize = 1024;
const CHUNKS: usize = PAGE_SIZE / CHUNK;
const BLOCK: usize = 64;
/// Pages in one go: a multiple of every lane count, and few enough that they stay in the level 1 and 2 caches from the zero test on.
const GROUP: usize = 16;

// The constants of the BLAKE3 paper, section 2.2 and table 3.
const IV: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;

/// How to hash the pages of a group.
struct Split {
    /// So many at once, the rest one by one.
    together: usize,
    /// `together`, and what is hashed for nothing to fill the lanes.
    padded: usize,
}

/// The cheapest way to hash `pages` pages. [`Platform::hash_many`] hashes what does not fill its lanes with 8, with 4 and in the end
/// with single ones, each for about the price of all: 8 pages cost as much as 5, and 4 pages no less than one by one, where the four chunks of a page
/// fill 4 lanes. Measured with AVX-512: 1 page by itself 1, 8 together 3.8, 16 together 5.4.
fn split(pages: usize, lanes: usize) -> Split {
    let rest = pages % lanes;
    let whole = pages - rest;
    match rest {
        0 => Split { together: pages, padded: pages },
        1..=4 => Split { together: whole, padded: whole },
        5..=8 => Split { together: pages, padded: whole + 8 },
        _ => Split { together: pages, padded: whole + lanes },
    }
}

/// Chaining value of a node.
type Value = [u8; OUT_LEN];

/// Working memory for one group.
pub(super) struct Batch {
    platform: Platform,
    /// Chaining values of the chunks: all first chunks, then all second ones …
    values: Box<[Value; CHUNKS * GROUP]>,
    /// Input of the parent nodes: two values each.
    parents: Box<[[u8; BLOCK]; 2 * GROUP]>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("platform", &self.platform).finish_non_exhaustive()
    }
}

impl Batch {
    pub(super) fn new(platform: Platform) -> Self {
        Self {
            platform,
            values: Box::new([[0; OUT_LEN]; CHUNKS * GROUP]),
            parents: Box::new([[0; BLOCK]; 2 * GROUP]),
        }
    }

    /// Hashes the pages and hands each digest out with the page's number, in order.
    pub(super) fn hash<'a>(
        &mut self,
        mut pages: impl Iterator<Item = (usize, &'a Page)>,
        mut each: impl FnMut(usize, Value),
    ) {
        while let Some((first_number, first_page)) = pages.next() {
            let mut numbers = [first_number; GROUP];
            let mut group = [first_page; GROUP];
            let mut filled = 1;
            for (number, page) in pages.by_ref().take(GROUP - 1) {
                (numbers[filled], group[filled]) = (number, page);
                filled += 1;
            }
            let Split { together, padded } = split(filled, self.platform.simd_degree());
            // The places behind the last page hold the first one: as good as any to fill lanes with.
            self.hash_group(&group[..padded]);
            for (number, digest) in numbers[..together].iter().zip(self.values.iter()) {
                each(*number, *digest);
            }
            for (number, page) in numbers[together..filled].iter().zip(&group[together..]) {
                each(*number, *blake3::hash(*page).as_bytes());
            }
        }
    }

    /// Hashes up to [`GROUP`] pages; the digests are the first of `values` afterwards.
    fn hash_group(&mut self, pages: &[&Page]) {
        let n = pages.len();
        self.hash_chunks(pages);
        // Lower parents: of chunks 0 and 1 for all pages, then of chunks 2 and 3.
        for pair in 0..2 {
            for i in 0..n {
                let (left, right) = self.parents[pair * n + i].split_at_mut(OUT_LEN);
                left.copy_from_slice(&self.values[2 * pair * n + i]);
                right.copy_from_slice(&self.values[(2 * pair + 1) * n + i]);
            }
        }
        self.hash_parents(2 * n, PARENT);
        for i in 0..n {
            let (left, right) = self.parents[i].split_at_mut(OUT_LEN);
            left.copy_from_slice(&self.values[i]);
            right.copy_from_slice(&self.values[n + i]);
        }
        self.hash_parents(n, PARENT | ROOT);
    }

    fn hash_chunks(&mut self, pages: &[&Page]) {
        let n = pages.len();
        let mut inputs: [&[u8; CHUNK]; GROUP] = [&[0; CHUNK]; GROUP];
        for k in 0..CHUNKS {
            for (input, page) in inputs.iter_mut().zip(pages) {
                *input = &page.as_chunks::<CHUNK>().0[k];
            }
            self.platform.hash_many(
                &inputs[..n],
                &IV,
                k as u64,
                IncrementCounter::No,
                0,
                CHUNK_START,
                CHUNK_END,
                self.values[k * n..(k + 1) * n].as_flattened_mut(),
            );
        }
    }

    /// Hashes the first `n` of `parents` to the first `n` of `values`.
    fn hash_parents(&mut self, n: usize, flags: u8) {
        let mut inputs: [&[u8; BLOCK]; 2 * GROUP] = [&[0; BLOCK]; 2 * GROUP];
        for (input, parent) in inputs.iter_mut().zip(&self.parents[..n]) {
            *input = parent;
        }
        let out = self.values[..n].as_flattened_mut();
        self.platform.hash_many(&inputs[..n], &IV, 0, IncrementCounter::No, flags, 0, 0, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every instruction set this processor has.
    fn platforms() -> Vec<Platform> {
        let mut platforms = vec![Platform::portable(), Platform::detect()];
        #[cfg(target_arch = "x86_64")]
        platforms.extend(
            [Platform::sse2(), Platform::sse41(), Platform::avx2(), Platform::avx512()].into_iter().flatten(),
        );
        platforms
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn digests_are_those_of_blake3(count in 0_usize..70, seed: u64, skip in 1_usize..5) {
            let mut state = seed;
            let pages: Vec<Page> = (0..count).map(|_| std::array::from_fn(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })).collect();
            for platform in platforms() {
                let mut digests = vec![None; count];
                // Some pages left out, as the zero ones are.
                Batch::new(platform).hash(
                    pages.iter().enumerate().filter(|(i, _)| i % skip == 0),
                    |number, digest| assert!(digests[number].replace(digest).is_none()),
                );
                for (i, (page, digest)) in pages.iter().zip(&digests).enumerate() {
                    let expected = (i % skip == 0).then(|| *blake3::hash(page).as_bytes());
                    prop_assert_eq!(*digest, expected, "page {} of {} on {:?}", i, count, platform);
                }
            }
        }
    }
}
