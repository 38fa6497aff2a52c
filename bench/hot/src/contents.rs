//! Pages and fingerprints made of numbers: the same for the same number, on every machine.

use indexer::fingerprint::Page;
use memdex_wire::Fingerprint;

/// A mixer as good as a hash where nobody chooses the numbers (splitmix64's).
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut x = *state;
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// A content's name.
pub(crate) fn fingerprint(number: u32) -> Fingerprint {
    let mut state = u64::from(number) << 20;
    let mut bytes = [0; Fingerprint::LEN];
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = mix(&mut state).to_le_bytes();
    }
    Fingerprint::new(bytes)
}

/// A page without a zero at its beginning.
pub(crate) fn page(number: u32) -> Page {
    let mut state = u64::from(number) << 20 | 1;
    let mut page = [0; size_of::<Page>()];
    for word in page.as_chunks_mut::<8>().0 {
        *word = mix(&mut state).to_le_bytes();
    }
    page
}
