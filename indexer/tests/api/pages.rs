//! The page map in its three forms, against the RAM file.

use memdex_wire::{
    Fingerprint,
    bulk::{self, PagesHeader},
    page::{PageRecord, PageState},
};
use reqwest::header;

use crate::support::{Served, Vm, at};

#[tokio::test]
async fn the_three_forms_say_the_same_and_it_is_true() {
    let served = Served::start().await;
    let mut vm = Vm::start("forms", &[1, 0, 2, 1]);
    let http = served.unix();
    let get = |accept: &'static str| {
        http.get(at(&format!("/v1/vms/{}/pages", vm.name))).header(header::ACCEPT, accept).send()
    };
    let array: Vec<PageRecord> = get("application/json").await.unwrap().json().await.unwrap();
    let lines = get("application/x-ndjson").await.unwrap();
    assert_eq!(lines.headers()[header::CONTENT_TYPE], "application/x-ndjson");
    let lines = lines.text().await.unwrap();
    let lines: Vec<PageRecord> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let binary = get(bulk::PAGES).await.unwrap();
    let etag = binary.headers()[header::ETAG].to_str().unwrap().to_owned();
    assert_eq!(binary.headers()[header::VARY], "accept");
    let length = binary.content_length();
    let binary = binary.bytes().await.unwrap();
    assert_eq!(length, Some(binary.len() as u64), "who downloads a map knows how much it is");
    let (head, records) = binary.split_first_chunk::<{ bulk::PAGES_HEADER }>().unwrap();
    let head = PagesHeader::decode(head, 4096).unwrap();
    assert_eq!((head.pages, head.records, format!("\"{}\"", head.generation)), (4096, 4096, etag));
    let (records, rest) = records.as_chunks::<{ bulk::PAGE_RECORD }>();
    assert!(rest.is_empty());
    let binary: Vec<PageRecord> = records.iter().map(|record| bulk::decode_page(record).unwrap()).collect();

    assert_eq!(array, lines);
    for (page, (json, binary)) in array.iter().zip(&binary).enumerate() {
        assert_eq!(json.page, page as u64);
        assert_eq!(PageRecord { offset: 0, ..*json }, *binary);
        assert_eq!(json.offset, page as u64 * 4096);
        let bytes = vm.page(page as u64);
        match json.state {
            PageState::Current => {
                let hash = Fingerprint::new(*blake3::hash(&bytes).as_bytes());
                assert_eq!(json.fingerprint, Some(hash));
            }
            PageState::Zero | PageState::Absent => {
                assert!(bytes == [0; 4096] && json.fingerprint.is_none());
            }
            PageState::Stale => panic!("page {page} is stale though nothing runs"),
        }
    }
    assert_eq!(array.iter().filter(|record| record.state == PageState::Current).count(), 3);
    assert_eq!(array.len(), binary.len());
}

#[tokio::test]
async fn the_generation_saves_asking_again() {
    let served = Served::start().await;
    let vm = Vm::start("etag", &[1]);
    let http = served.unix();
    let url = at(&format!("/v1/vms/{}/pages", vm.name));
    let first = http.get(&url).send().await.unwrap();
    let etag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
    assert_eq!(first.json::<Vec<PageRecord>>().await.unwrap().len(), 4096);
    let generation: u64 = etag.trim_matches('"').parse().unwrap();
    for tag in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        let again = http.get(&url).header(header::IF_NONE_MATCH, tag).send().await.unwrap();
        assert_eq!(
            (again.status().as_u16(), again.headers()[header::ETAG].to_str().unwrap()),
            (304, etag.as_str())
        );
        assert!(again.bytes().await.unwrap().is_empty());
    }
    let other = http.get(&url).header(header::IF_NONE_MATCH, "\"0\"").send().await.unwrap();
    assert_eq!(other.status(), 200);
    let since = http.get(format!("{url}?since={generation}")).send().await.unwrap();
    assert_eq!(since.json::<Vec<PageRecord>>().await.unwrap(), []);
    let future = http.get(format!("{url}?since={}", u64::MAX)).send().await.unwrap();
    assert_eq!(
        future.json::<Vec<PageRecord>>().await.unwrap().len(),
        4096,
        "a future generation gets everything"
    );
}

#[tokio::test]
async fn a_head_request_gets_the_headers_alone() {
    let served = Served::start().await;
    let vm = Vm::start("head", &[1]);
    let answer = served.unix().head(at(&format!("/v1/vms/{}/pages", vm.name))).send().await.unwrap();
    assert!(answer.status() == 200 && answer.headers().contains_key(header::ETAG));
    assert!(answer.bytes().await.unwrap().is_empty());
}
