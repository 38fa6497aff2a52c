use proptest::prelude::*;

use super::*;

fn prints() -> impl Strategy<Value = Fingerprint> {
    any::<[u8; 32]>().prop_map(Fingerprint::new)
}

fn body(frame: &[u8]) -> (u8, &[u8]) {
    let (length, kind) = ToSource::head(frame[..FRAME_HEADER].try_into().unwrap()).unwrap();
    assert_eq!(length, frame.len() - FRAME_HEADER);
    (kind, &frame[FRAME_HEADER..])
}

proptest! {
    #[test]
    fn offers_and_needs_round_trip(
        batch: u32, push: bool,
        // Close together, so that there are runs, and at the end of all numbers.
        pages in prop::collection::vec((prop_oneof![0..50u32, u32::MAX - 5..=u32::MAX], prints()), 0..60),
        positions in prop::collection::vec(any::<u16>(), 0..40),
    ) {
        let namer = Namer::new([3; 32]);
        let pages = pages.into_iter().map(|(page, content)| (page, namer.name(&content))).collect();
        let offer = ToDestination::Offer { batch, push, pages };
        let frame = offer.encode();
        let (kind, bytes) = body(&frame);
        prop_assert_eq!(ToDestination::decode(kind, bytes).unwrap(), offer);
        let need = ToSource::Need { batch, positions };
        let frame = need.encode();
        let (kind, bytes) = body(&frame);
        prop_assert_eq!(ToSource::decode(kind, bytes).unwrap(), need);
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(kind: u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ToDestination::decode(kind, &bytes);
        let _ = ToSource::decode(kind, &bytes);
        if let Some(head) = bytes.first_chunk() {
            let _ = ToSource::head(*head);
        }
        if let Some(Ok(head)) = bytes.first_chunk().map(BlockHeader::decode) {
            prop_assert!(head.payload as usize <= MAX_PAYLOAD);
            prop_assert_eq!(BlockHeader::decode(&head.encode()).unwrap(), head);
        }
    }

    #[test]
    fn one_page_changes_the_digest(mut pages in prop::collection::vec(prints(), 1..50), at: prop::sample::Index) {
        let before = chunk_digest(&pages);
        let at = at.index(pages.len());
        let kept = pages[at];
        pages[at] = if kept == ZERO { Fingerprint::new([1; 32]) } else { ZERO };
        prop_assert_ne!(chunk_digest(&pages), before);
        pages[at] = kept;
        prop_assert_eq!(chunk_digest(&pages), before);
    }
}

#[test]
fn other_frames_round_trip() {
    for frame in [
        ToDestination::Digest([7; 32]),
        ToDestination::PrepareDevice,
        ToDestination::Device(vec![1, 2, 3]),
        ToDestination::DeviceEnd,
        ToDestination::HandOver { run: true },
        ToDestination::Abort("because".to_owned()),
        ToDestination::Ping,
        ToDestination::Goodbye,
    ] {
        let bytes = frame.encode();
        let (kind, body) = body(&bytes);
        assert_eq!(ToDestination::decode(kind, body).unwrap(), frame);
    }
    for frame in [
        ToSource::Done { batch: 3 },
        ToSource::Digest([7; 32]),
        ToSource::DeviceReady,
        ToSource::DeviceLoaded,
        ToSource::Running,
        ToSource::Fail("because".to_owned()),
        ToSource::Pong,
    ] {
        let bytes = frame.encode();
        let (kind, body) = body(&bytes);
        assert_eq!(ToSource::decode(kind, body).unwrap(), frame);
    }
}

#[test]
fn a_frame_that_announces_too_much_is_refused() {
    assert!(ToSource::head([0xff, 0xff, 0xff, 0xff, 65]).is_err());
}

/// The body of an offer with these runs, and so many names.
fn offer(push: u8, runs: &[(u32, u32)], names: usize) -> Vec<u8> {
    let mut body = vec![9, 0, 0, 0, push];
    body.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    for (first, length) in runs {
        body.extend_from_slice(&first.to_le_bytes());
        body.extend_from_slice(&length.to_le_bytes());
    }
    body.resize(body.len() + names * Name::LEN, 1);
    body
}

#[test]
fn offers_that_do_not_add_up_are_refused() {
    let decode = |body: &[u8]| ToDestination::decode(2, body);
    assert!(decode(&offer(1, &[(5, 2), (9, 1)], 3)).is_ok());
    assert!(decode(&offer(0, &[(u32::MAX, 1)], 1)).is_ok());
    assert!(decode(&offer(0, &[(0, MAX_OFFER as u32)], MAX_OFFER)).is_ok());
    for (what, body) in [
        ("no such word", offer(2, &[(5, 1)], 1)),
        ("beyond the last number", offer(0, &[(u32::MAX, 2)], 2)),
        ("more pages than names", offer(0, &[(5, 2)], 1)),
        ("far more pages than names", offer(0, &[(5, u32::MAX)], 1)),
        ("more names than pages", offer(0, &[(5, 1)], 2)),
        ("names only", offer(0, &[], 1)),
        ("too many runs", offer(0, &vec![(5, 0); MAX_OFFER + 1], 0)),
        ("too many names", offer(0, &[(0, MAX_OFFER as u32 + 1)], MAX_OFFER + 1)),
    ] {
        assert!(decode(&body).is_err(), "{what}");
    }
    let mut odd = offer(0, &[(5, 1)], 1);
    odd.pop();
    assert!(decode(&odd).is_err());
    let whole = offer(1, &[(5, 2), (9, 1)], 3);
    (0..whole.len()).for_each(|length| assert!(decode(&whole[..length]).is_err(), "{length} bytes"));
}

#[test]
fn a_greeting_with_endless_lists_is_refused() {
    let mut hello = ToDestination::Hello(Hello {
        name: "vm".to_owned(),
        dest_vm: "vm".to_owned(),
        dest_qmp: None,
        regions: vec![1 << 30; 512],
        backends: (0..512).map(|number| format!("backend-{number}")).collect(),
        populated: 0,
        qemu: "10.0.2".to_owned(),
        key: "00".repeat(16),
        dry_run: false,
    });
    let frame = hello.encode();
    let (kind, content) = body(&frame);
    assert_eq!(
        ToDestination::decode(kind, content).unwrap(),
        hello,
        "more memory slots than any machine has"
    );
    let ToDestination::Hello(inner) = &mut hello else { unreachable!() };
    inner.regions = vec![0; 1 << 16];
    let frame = hello.encode();
    let (kind, content) = body(&frame);
    assert!(content.len() < MAX_FRAME);
    let why = ToDestination::decode(kind, content).unwrap_err().to_string();
    assert!(why.contains("greeting"), "{why}");
}
