use proptest::prelude::*;

use super::*;

const ZERO: Page = [0; PAGE_SIZE];

fn expected(page: &Page) -> Option<Fingerprint> {
    (*page != ZERO).then(|| Fingerprint::new(*blake3::hash(page).as_bytes()))
}

#[test]
fn one_byte_anywhere_is_not_zero() {
    assert!(is_zero(&ZERO));
    let mut page = ZERO;
    for at in 0..PAGE_SIZE {
        for value in [1, 0x80, 0xff] {
            page[at] = value;
            assert!(!is_zero(&page), "byte {at}");
        }
        page[at] = 0;
    }
}

#[test]
fn the_hasher_can_be_used_again_and_appends() {
    let mut hasher = Hasher::new();
    let mut out = Vec::new();
    let page = [7; PAGE_SIZE];
    hasher.fingerprint(&[ZERO, page], &mut out);
    hasher.fingerprint(&[], &mut out);
    hasher.fingerprint(&[page], &mut out);
    assert_eq!(out, [None, expected(&page), expected(&page)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn zero_pages_have_none_and_others_their_blake3(kinds in prop::collection::vec(0_u8..5, 0..70), at in 0..PAGE_SIZE) {
        let pages: Vec<Page> = kinds.iter().enumerate().map(|(i, kind)| {
            let mut page = ZERO;
            match kind {
                0 | 1 => {}
                2 => page[at] = 1 + i as u8,
                3 => page.fill(*kind + i as u8),
                _ => page[PAGE_SIZE - 1] = 9,
            }
            page
        }).collect();
        let mut out = Vec::new();
        Hasher::new().fingerprint(&pages, &mut out);
        prop_assert_eq!(out, pages.iter().map(expected).collect::<Vec<_>>());
        let mut all = Vec::new();
        Hasher::new().hash_all(&pages, &mut all);
        let whole: Vec<_> = pages.iter().map(|page| Fingerprint::new(*blake3::hash(page).as_bytes())).collect();
        prop_assert_eq!(all, whole);
    }
}
