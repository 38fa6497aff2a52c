//! Bounds: what one client can make the daemon hold or do.

use std::{
    io::{Read, Write},
    time::Duration,
};

use memdex_wire::{Fingerprint, bulk, content::MAX_JSON_LOOKUP, problem::Code};
use reqwest::header;

use crate::support::{Served, at, problem, raw};

fn list(count: usize) -> Vec<Fingerprint> {
    (0..count as u32)
        .map(|n| {
            let mut bytes = [7; 32];
            bytes[..4].copy_from_slice(&n.to_le_bytes());
            Fingerprint::new(bytes)
        })
        .collect()
}

#[tokio::test]
async fn the_largest_lookup_is_taken_and_a_larger_one_is_not() {
    let served = Served::start().await;
    let http = served.unix();
    let post = |path: &str, body: Vec<u8>| {
        http.post(at(path)).header(header::CONTENT_TYPE, bulk::FINGERPRINTS).body(body).send()
    };
    let largest = bulk::encode_fingerprints(bulk::KeyId::PLAIN, &list(bulk::MAX_LOOKUP));
    assert_eq!(largest.len(), bulk::MAX_LOOKUP_BYTES);
    let answer = post("/v1/content/lookup", largest.clone()).await.unwrap();
    assert_eq!(answer.headers()[header::CONTENT_TYPE], bulk::BITMAP);
    let held = bulk::decode_bitmap(bulk::MAX_LOOKUP as u32, &answer.bytes().await.unwrap()).unwrap();
    assert!(held.is_empty());

    let larger = [largest, vec![0; 32]].concat();
    problem(post("/v1/content/lookup", larger).await.unwrap(), Code::TooLarge).await;
    let too_many = bulk::encode_fingerprints(bulk::KeyId::PLAIN, &list(bulk::MAX_CONTENTS + 1));
    problem(post("/v1/content/pages", too_many).await.unwrap(), Code::TooLarge).await;
    let json = |n| serde_json::json!({ "fingerprints": list(n) });
    let answer = http.post(at("/v1/content/lookup")).json(&json(MAX_JSON_LOOKUP)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = http.post(at("/v1/content/lookup")).json(&json(MAX_JSON_LOOKUP + 1)).send().await.unwrap();
    problem(answer, Code::TooLarge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_body_is_cut_off() {
    let served = Served::start().await;
    tokio::task::spawn_blocking(move || {
        let mut stream = served.connect();
        let head = "POST /v1/content/lookup HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
                    content-type: application/vnd.memdex.fingerprints.v1\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let chunk = [b"10000\r\n".as_slice(), &[0; 0x1_0000], b"\r\n"].concat();
        let sent = (0..1000).take_while(|_| stream.write_all(&chunk).is_ok()).count();
        assert!(sent < 200, "{sent} chunks of 64 KiB were taken");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.contains("413"), "{answer}");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_length_alone_costs_nothing() {
    let served = Served::start().await;
    let request = "POST /v1/content/lookup HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\
                   content-type: application/vnd.memdex.fingerprints.v1\r\nconnection: close\r\n\r\n";
    let answer = tokio::task::spawn_blocking(move || raw(&served, request.as_bytes())).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("too_large"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_nothing_does_not_stay_for_ever() {
    let served = Served::start().await;
    let waited = tokio::task::spawn_blocking(move || {
        let mut stream = served.connect();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-slow: ").unwrap();
        let start = std::time::Instant::now();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        start.elapsed()
    })
    .await
    .unwrap();
    assert!(waited < Duration::from_secs(35), "{waited:?}");
}

#[tokio::test]
async fn options_are_bounded_too() {
    let served = Served::start().await;
    let vm = crate::support::Vm::start("options", &[1]);
    let http = served.unix();
    let sync = at(&format!("/v1/vms/{}/sync", vm.name));
    for body in [
        serde_json::json!({"timeout_ms": 600_001}),
        serde_json::json!({"timeout_ms": -1}),
        serde_json::json!({"timeout": 1}),
        serde_json::json!("30s"),
    ] {
        problem(http.post(&sync).json(&body).send().await.unwrap(), Code::BadRequest).await;
    }
    problem(http.post(&sync).body("x").send().await.unwrap(), Code::UnsupportedMediaType).await;
    let large = serde_json::json!({"timeout_ms": 1, "x": "y".repeat(10_000)});
    problem(http.post(&sync).json(&large).send().await.unwrap(), Code::TooLarge).await;
    let verify = at(&format!("/v1/vms/{}/verify", vm.name));
    problem(http.post(&verify).body("[1]").send().await.unwrap(), Code::BadRequest).await;
    for query in ["since=x", "since=-1", "sinse=1", "since=1&since=2"] {
        let answer = http.get(at(&format!("/v1/vms/{}/pages?{query}", vm.name))).send().await.unwrap();
        problem(answer, Code::BadRequest).await;
    }
    for query in ["", "to=", "to=nobody", "to=http://x:1", "to=tcp://10.1.2.3:7", "two=x"] {
        let answer = http.get(at(&format!("/v1/vms/{}/diff?{query}", vm.name))).send().await.unwrap();
        problem(answer, Code::BadRequest).await;
    }
}
