//! BLAKE3 of up to sixteen pages side by side.
//!
//! # Why this is not just `blake3::hash`
//!
//! BLAKE3 hashes chunks of 1024 bytes independently and joins their chaining values in a binary tree. One page has four
//! chunks, so hashing page by page fills 4 of the 16 lanes of AVX-512 (or half of AVX2's 8). Here the k-th chunks of
//! sixteen pages are hashed in one call (they have the same chunk counter k), then the two levels of parents the same
//! way: every lane is used, and the digests are by construction those of `blake3::hash`.
//!
//! `blake3::platform` is public but hidden from the crate's documentation, so the version is pinned in `Cargo.toml`, and the
//! tests compare with `blake3::hash` on every run.

use blake3::{IncrementCounter, platform::Platform};
use memdex_wire::PAGE_SIZE;

use super::Page;

const CHUNK: usize = 1024;
const CHUNKS: usize = PAGE_SIZE / CHUNK;
const DIGEST: usize = 32;
const BLOCK: usize = 64;

// From the BLAKE3 specification, tables 1 and 3.
const IV: [u32; 8] = [
    0x6A09_E667,
    0xBB67_AE85,
    0x3C6E_F372,
    0xA54F_F53A,
    0x510E_527F,
    0x9B05_688C,
    0x1F83_D9AB,
    0x5BE0_CD19,
];
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;

/// Hashes pages side by side with the widest instructions the CPU has.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    platform: Platform,
}

impl Batch {
    /// Pages hashed at once: as many as the widest platform has lanes.
    pub const PAGES: usize = 16;
    /// Fewer pages than this are hashed one by one: that fills as many lanes.
    const FEW: usize = 4;

    /// The best this CPU can do.
    #[must_use]
    pub fn detect() -> Self {
        Self { platform: Platform::detect() }
    }

    /// Calls `done` with each page's position and digest.
    ///
    /// # Panics
    /// If there are more than [`Batch::PAGES`].
    pub fn hash(&self, pages: &[&Page], mut done: impl FnMut(usize, [u8; DIGEST])) {
        assert!(pages.len() <= Self::PAGES, "at most {} pages at once", Self::PAGES);
        if pages.len() < Self::FEW {
            for (i, page) in pages.iter().enumerate() {
                done(i, *blake3::hash(page.as_slice()).as_bytes());
            }
            return;
        }
        let n = pages.len();

        // values[chunk][page]: chaining values of the chunks.
        let mut values = [[[0u8; DIGEST]; Self::PAGES]; CHUNKS];
        for (chunk, values) in values.iter_mut().enumerate() {
            let mut inputs = [&[0u8; CHUNK]; Self::PAGES];
            for (input, page) in inputs.iter_mut().zip(pages) {
                *input = &page.as_chunks::<CHUNK>().0[chunk];
            }
            self.platform.hash_many(
                &inputs[..n],
                &IV,
                chunk as u64,
                IncrementCounter::No,
                0,
                CHUNK_START,
                CHUNK_END,
                values.as_flattened_mut(),
            );
        }

        // The two parents of each page: halves[half][page] joins chunks 2·half and 2·half + 1.
        let mut halves = [[[0u8; DIGEST]; Self::PAGES]; 2];
        for (half, halves) in halves.iter_mut().enumerate() {
            let [left, right] = [&values[2 * half], &values[2 * half + 1]];
            self.parents(left, right, n, PARENT, halves);
        }
        let mut digests = [[0u8; DIGEST]; Self::PAGES];
        self.parents(&halves[0], &halves[1], n, PARENT | ROOT, &mut digests);
        for (i, digest) in digests.iter().take(n).enumerate() {
            done(i, *digest);
        }
    }

    fn parents(
        &self,
        left: &[[u8; DIGEST]; Self::PAGES],
        right: &[[u8; DIGEST]; Self::PAGES],
        n: usize,
        flags: u8,
        out: &mut [[u8; DIGEST]; Self::PAGES],
    ) {
        let mut blocks = [[0u8; BLOCK]; Self::PAGES];
        for (block, (left, right)) in blocks.iter_mut().zip(left.iter().zip(right)) {
            block[..DIGEST].copy_from_slice(left);
            block[DIGEST..].copy_from_slice(right);
        }
        let inputs = blocks.each_ref();
        self.platform.hash_many(
            &inputs[..n],
            &IV,
            0,
            IncrementCounter::No,
            flags,
            0,
            0,
            out.as_flattened_mut(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction set this CPU has, not just the best one.
    fn platforms() -> Vec<Platform> {
        let mut all = vec![Platform::Portable, Platform::detect()];
        all.extend(Platform::sse2());
        all.extend(Platform::sse41());
        all.extend(Platform::avx2());
        all.extend(Platform::avx512());
        all
    }

    #[test]
    fn every_platform_and_every_number_of_pages_gives_blake3() {
        let pages: Vec<Page> = (0..Batch::PAGES as u8)
            .map(|n| std::array::from_fn(|i| (i as u8).wrapping_mul(31).wrapping_add(n)))
            .collect();
        for platform in platforms() {
            for n in 0..=Batch::PAGES {
                let refs: Vec<_> = pages.iter().take(n).collect();
                let mut digests = vec![[0; DIGEST]; n];
                Batch { platform }.hash(&refs, |i, digest| digests[i] = digest);
                for (page, digest) in pages.iter().zip(digests) {
                    assert_eq!(&digest, blake3::hash(page).as_bytes(), "{platform:?}, {n} pages");
                }
            }
        }
    }
}
