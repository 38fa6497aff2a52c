//! Content by its name: lookups and pages.

use std::{
    io::{Read, Write},
    time::Duration,
};

use indexer::picture::Picture;
use memdex_wire::{
    Fingerprint,
    bulk::{self, KeyId},
    content::LookupAnswer,
    picture::{Frame, Position},
};
use migrate_client::{Client, ClientOptions, PictureStream};
use reqwest::header;

use crate::support::{Served, Vm, at};

fn of(byte: u8) -> Fingerprint {
    Fingerprint::new(*blake3::hash(&[byte; 4096]).as_bytes())
}

#[tokio::test]
async fn both_forms_of_a_lookup_find_what_is_held() {
    let served = Served::start().await;
    let _vm = Vm::start("lookup", &[101, 102, 102]);
    let http = served.unix();
    let list = [of(102), of(253), of(101), of(0)];
    let answer = http.post(at("/v1/content/lookup")).json(&serde_json::json!({ "fingerprints": list }));
    let answer: LookupAnswer = answer.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer.held, [true, false, true, false]);

    let ask = |key| {
        let body = bulk::encode_fingerprints(key, &list);
        http.post(at("/v1/content/lookup")).header(header::CONTENT_TYPE, bulk::FINGERPRINTS).body(body).send()
    };
    let held = ask(KeyId::PLAIN).await.unwrap().bytes().await.unwrap();
    assert_eq!(bulk::decode_bitmap(4, &held).unwrap().iter().collect::<Vec<_>>(), [0, 2]);
    let held = ask(KeyId([1; 16])).await.unwrap().bytes().await.unwrap();
    assert!(bulk::decode_bitmap(4, &held).unwrap().is_empty(), "another key never matches");
}

#[tokio::test]
async fn contents_are_sent_for_what_is_held() {
    let served = Served::start().await;
    let _vm = Vm::start("contents", &[111, 112]);
    let list = [of(112), of(254), of(111), of(112)];
    let body = bulk::encode_fingerprints(KeyId::PLAIN, &list);
    let request =
        served.unix().post(at("/v1/content/pages")).header(header::CONTENT_TYPE, bulk::FINGERPRINTS);
    let answer = request.body(body).send().await.unwrap();
    assert_eq!(answer.headers()[header::CONTENT_TYPE], bulk::CONTENTS);
    let bytes = answer.bytes().await.unwrap();
    let (head, records) = bytes.split_first_chunk::<{ bulk::CONTENTS_HEADER }>().unwrap();
    bulk::check_contents_header(4, head).unwrap();
    let (records, rest) = records.as_chunks::<{ bulk::CONTENT_RECORD }>();
    assert!(rest.is_empty());
    let mut next = 0;
    let mut sent = Vec::new();
    for record in records {
        let (position, page) = bulk::decode_content(4, next, record).unwrap();
        assert_eq!(blake3::hash(page).as_bytes(), list[position as usize].as_bytes());
        sent.push(position);
        next = position + 1;
    }
    assert_eq!(sent, [0, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_may_come_in_pieces_of_any_length() {
    let served = Served::start().await;
    let _vm = Vm::start("pieces", &[141, 142]);
    let list = [of(142), of(255), of(141), of(254), of(142)];
    let body = bulk::encode_fingerprints(KeyId::PLAIN, &list);
    let answers: Vec<_> = tokio::task::spawn_blocking(move || {
        let ask = |length| {
            let mut request = "POST /v1/content/lookup HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
                               content-type: application/vnd.memdex.fingerprints.v1\r\n\r\n"
                .as_bytes()
                .to_vec();
            for piece in body.chunks(length) {
                request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                request.extend_from_slice(piece);
                request.extend_from_slice(b"\r\n");
            }
            request.extend_from_slice(b"0\r\n\r\n");
            let mut stream = served.connect();
            stream.write_all(&request).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let head = answer.windows(4).position(|some| some == b"\r\n\r\n").unwrap() + 4;
            answer.split_off(head)
        };
        [1, 5, 23, 24, 25, 31, 32, 33, 57, 1000].map(ask).into()
    })
    .await
    .unwrap();
    for answer in answers {
        let held = bulk::decode_bitmap(5, &answer).unwrap();
        assert_eq!(held.iter().collect::<Vec<_>>(), [0, 2, 4]);
    }
}

/// A page that changed and nobody has seen it: here the RAM file is written by somebody who does not map it.
#[tokio::test]
async fn what_is_not_what_it_was_is_never_sent() {
    let served = Served::start().await;
    let mut vm = Vm::start("changed", &[151, 152, 153, 154, 152]);
    let ask = async |list: &[Fingerprint]| {
        let body = bulk::encode_fingerprints(KeyId::PLAIN, list);
        let request =
            served.unix().post(at("/v1/content/pages")).header(header::CONTENT_TYPE, bulk::FINGERPRINTS);
        let bytes = request.body(body).send().await.unwrap().bytes().await.unwrap();
        let records = bytes[bulk::CONTENTS_HEADER..].as_chunks::<{ bulk::CONTENT_RECORD }>().0;
        let mut sent = Vec::new();
        for record in records {
            let next = sent.last().map_or(0, |last| last + 1);
            let (position, page) = bulk::decode_content(list.len() as u32, next, record).unwrap();
            assert_eq!(blake3::hash(page).as_bytes(), list[position as usize].as_bytes());
            sent.push(position);
        }
        sent
    };
    let list = [of(151), of(152), of(153), of(154)];
    assert_eq!(ask(&list).await, [0, 1, 2, 3]);
    vm.write(0, &[99; 4096]);
    vm.write(1, &[98; 4096]);
    vm.write(2, &[0; 4096]);
    assert_eq!(ask(&list).await, [1, 3], "one of them is at another place still");
    // Many at once, every other one gone.
    let many: Vec<_> = (0..100).map(|n| if n % 2 == 0 { of(153) } else { of(154) }).collect();
    assert!(ask(&many).await.into_iter().eq((1..100).step_by(2)));
}

async fn frame(stream: &mut PictureStream) -> Frame {
    let next = tokio::time::timeout(Duration::from_secs(20), stream.next());
    next.await.expect("a sign of life comes in time").expect("the stream has no end").unwrap()
}

/// Reads on until a content has come to the picture, or gone from it.
async fn follow(
    stream: &mut PictureStream,
    picture: &mut Picture,
    content: Fingerprint,
    come: bool,
) -> Position {
    loop {
        let Frame::Changes { position, changes } = frame(stream).await else { panic!("not a change") };
        for change in changes {
            picture.apply(change);
        }
        if picture.contains(content.prefix()) == come {
            return position;
        }
    }
}

#[tokio::test]
async fn what_is_held_is_told_and_then_what_comes_and_goes() {
    let served = Served::start().await;
    let _vm = Vm::start("picture", &[121, 122, 122]);
    let url = format!("unix:{}", served.socket().display()).parse().unwrap();
    let client = Client::new(url, ClientOptions::default()).unwrap();
    let mut stream = client.picture(None).await.unwrap();
    let Frame::Begin { keys, position, .. } = frame(&mut stream).await else { panic!("no beginning") };
    let mut picture = Picture::begin(keys);
    loop {
        match frame(&mut stream).await {
            Frame::Part(part) => picture.push(&part, 1 << 20).unwrap(),
            Frame::Complete => break,
            other => panic!("{other:?} in the midst of a picture"),
        }
    }
    assert!(picture.complete() && [121, 122].iter().all(|byte| picture.contains(of(*byte).prefix())));
    let other = Vm::start("picture-other", &[122, 123]);
    let come = follow(&mut stream, &mut picture, of(123), true).await;
    assert_eq!(come.epoch, position.epoch);
    drop(other);
    let gone = follow(&mut stream, &mut picture, of(123), false).await;
    assert!(picture.contains(of(122).prefix()), "another VM has it still");
    assert!(gone.sequence > come.sequence);

    // Whoever comes back is told what it has missed, once.
    drop(stream);
    let mut stream = client.picture(Some(come)).await.unwrap();
    let Frame::Changes { changes, .. } = frame(&mut stream).await else { panic!("a new picture") };
    assert!(changes.iter().any(|change| !change.come() && change.prefix() == of(123).prefix() & !1));
    // Unless nobody knows any more.
    for unknown in [Position { epoch: come.epoch ^ 1, ..come }, Position { sequence: u64::MAX, ..come }] {
        let mut stream = client.picture(Some(unknown)).await.unwrap();
        assert!(matches!(frame(&mut stream).await, Frame::Begin { .. }), "{unknown}");
    }
    let bad = served.unix().get(at("/v1/content/picture?since=yesterday")).send().await.unwrap();
    assert_eq!(bad.status(), 400);
    let bad = bad.text().await.unwrap();
    assert!(bad.contains("bad_request") && bad.contains("since"), "{bad}");
}
