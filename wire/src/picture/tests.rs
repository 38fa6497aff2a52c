use proptest::prelude::*;

use super::*;

fn frames() -> impl Strategy<Value = Frame> {
    let position = || (any::<u64>(), any::<u64>()).prop_map(|(epoch, sequence)| Position { epoch, sequence });
    let buckets = prop::collection::vec(prop::collection::btree_set(any::<u16>(), 0..20), 0..30);
    prop_oneof![
        (position(), any::<u64>(), 1..=MAX_BITS, any::<u64>()).prop_map(|(position, m, bits, contents)| {
            Frame::Begin { position, keys: Keys::new(m | 1, bits).unwrap(), contents }
        }),
        (any::<u32>(), buckets).prop_map(|(first, buckets)| {
            let counts = buckets.iter().map(|bucket| bucket.len() as u16).collect();
            Frame::Part(Part { first, counts, rests: buckets.into_iter().flatten().collect() })
        }),
        Just(Frame::Complete),
        (position(), prop::collection::vec((any::<u64>(), any::<bool>()), 0..50)).prop_map(
            |(position, changes)| {
                let changes = changes.into_iter().map(|(prefix, come)| Change::new(prefix, come)).collect();
                Frame::Changes { position, changes }
            }
        ),
    ]
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, DecodeError> {
    let (header, payload) = bytes.split_first_chunk().unwrap();
    let (kind, length) = Frame::decode_header(header)?;
    assert_eq!(length, payload.len());
    Frame::decode(kind, payload)
}

proptest! {
    #[test]
    fn frames_come_back_as_they_were(frame in frames()) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        prop_assert_eq!(decode(&bytes).unwrap(), Some(frame));
    }

    #[test]
    fn no_payload_makes_a_decoder_panic(kind in 0..6_u32, payload in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Some(frame)) = Frame::decode(kind, &payload) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            prop_assert_eq!(decode(&bytes).unwrap(), Some(frame));
        }
    }

    #[test]
    fn positions_come_back_as_they_were(epoch in any::<u64>(), sequence in any::<u64>()) {
        let position = Position { epoch, sequence };
        prop_assert_eq!(position.to_string().parse(), Ok(position));
    }
}

#[test]
fn what_is_out_of_order_is_refused() {
    let part = |counts: &[u16], rests: &[u16]| {
        let mut bytes = Vec::new();
        Frame::Part(Part { first: 0, counts: counts.into(), rests: rests.into() }).encode(&mut bytes);
        decode(&bytes).is_ok()
    };
    assert!(part(&[2, 1], &[1, 5, 0]));
    assert!(!part(&[2, 1], &[5, 1, 0]) && !part(&[2, 1], &[5, 5, 0]));
    assert!(!part(&[2, 1], &[1, 5]) && !part(&[2, 1], &[1, 5, 0, 9]) && !part(&[], &[1]));
    assert!(Frame::decode_header(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0]).is_err());
    assert!(Keys::new(2, 5).is_err() && Keys::new(1, 0).is_err() && Keys::new(1, MAX_BITS + 1).is_err());
    assert_eq!(Frame::decode(9, b"later").unwrap(), None);
    for text in [
        "",
        ".",
        "0.0",
        "000000000000000g.1",
        "0000000000000000.",
        "+000000000000000.1",
        "0000000000000000.+1",
    ] {
        assert!(text.parse::<Position>().is_err(), "{text}");
    }
}

#[test]
fn a_content_keeps_its_key_whatever_the_lowest_bit() {
    let keys = Keys::new(0x9E37_79B9_7F4A_7C15, 10).unwrap();
    let key = keys.key(0x1234_5678_9abc_def1);
    assert_eq!(key, keys.key(Change::new(0x1234_5678_9abc_def1, true).prefix()));
    let (bucket, rest) = Keys::split(key);
    assert!(bucket < keys.buckets());
    assert_eq!(u64::from(bucket) << 16 | u64::from(rest), key);
}
