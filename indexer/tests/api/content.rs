//! Content by its name: lookups and pages.

use memdex_wire::{
    Fingerprint,
    bulk::{self, KeyId},
    content::LookupAnswer,
};
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
