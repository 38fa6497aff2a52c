use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_lookup_round_trips(key: [u8; 16], list in prop::collection::vec(any::<[u8; 32]>(), 0..50)) {
        let list: Vec<_> = list.into_iter().map(Fingerprint::new).collect();
        let body = encode_fingerprints(KeyId(key), &list);
        prop_assert_eq!(decode_fingerprints(&body).unwrap(), (KeyId(key), list));
    }

    #[test]
    fn an_answer_round_trips(positions in prop::collection::btree_set(0u32..5000, 0..300)) {
        let held: RoaringBitmap = positions.into_iter().collect();
        let body = encode_bitmap(5000, &held);
        prop_assert_eq!(decode_bitmap(5000, &body).unwrap(), held);
    }

    #[test]
    fn garbage_is_refused_and_never_panics(
        mut body in prop::collection::vec(any::<u8>(), 0..400), magic in 0..4usize, asked: u32,
    ) {
        if let (Some(start), Some(magic)) = (body.get_mut(..4), [b"MXF1", b"MXB1", b"MXP1"].get(magic)) {
            start.copy_from_slice(*magic);
        }
        if let Ok((_, list)) = decode_fingerprints(&body) {
            prop_assert_eq!(list.len() * 32 + 24, body.len());
        }
        if let Ok(held) = decode_bitmap(asked, &body) {
            prop_assert!(held.max().is_none_or(|last| last < asked));
        }
        if let Some((header, _)) = body.split_first_chunk::<PAGES_HEADER>() {
            let _ = PagesHeader::decode(header, 1 << 30);
        }
        if let Some((record, _)) = body.split_first_chunk::<PAGE_RECORD>() {
            let _ = decode_page(record);
        }
    }

    #[test]
    fn a_page_record_round_trips(page: u64, region: u32, generation: u64, state in 0..4u8, fingerprint: Option<[u8; 32]>) {
        let state = [PageState::Stale, PageState::Absent, PageState::Zero, PageState::Current][usize::from(state)];
        let record = PageRecord { page, region, offset: 0, state, fingerprint: fingerprint.map(Fingerprint::new), generation };
        let mut bytes = Vec::new();
        encode_page(&record, &mut bytes);
        let bytes: &[u8; PAGE_RECORD] = bytes.as_slice().try_into().unwrap();
        prop_assert_eq!(decode_page(bytes).unwrap(), record);
    }
}

#[test]
fn contents_round_trip_in_the_order_asked_for() {
    assert!(check_contents_header(7, &encode_contents_header(7)).is_ok());
    assert!(check_contents_header(8, &encode_contents_header(7)).is_err());
    let mut bytes = Vec::new();
    encode_content(5, &[9; crate::PAGE_SIZE], &mut bytes);
    let record = bytes.first_chunk::<CONTENT_RECORD>().unwrap();
    assert_eq!(bytes.len(), CONTENT_RECORD);
    assert_eq!(decode_content(6, 0, record).unwrap(), (5, &[9; crate::PAGE_SIZE]));
    assert!(decode_content(5, 0, record).is_err());
    assert!(decode_content(9, 6, record).is_err());
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let held: RoaringBitmap = [3u32].into_iter().collect();
    assert!(decode_bitmap(10, &encode_bitmap(9, &held)).is_err());
    assert!(decode_bitmap(3, &encode_bitmap(3, &held)).is_err());
    assert!(decode_fingerprints(&encode_fingerprints(KeyId::PLAIN, &[])[..20]).is_err());
}

#[test]
fn limits_hold_for_the_largest_bitmap() {
    let every_other: RoaringBitmap = (0..MAX_LOOKUP as u32).step_by(2).collect();
    assert!(encode_bitmap(MAX_LOOKUP as u32, &every_other).len() <= MAX_BITMAP_BYTES);
}
