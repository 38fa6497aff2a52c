//! Whether a page is all zero.

use super::Page;

/// Whether every byte is zero. Stops at the first block of 256 bytes that has another one, which for most pages of content is the first.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    let (blocks, _) = page.as_chunks::<256>();
    // OR over a block without branches becomes vector instructions.
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    })
}
