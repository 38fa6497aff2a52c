//! Everything that goes wrong is a problem with the right code.

use std::path::Path;

use memdex_wire::{bulk, problem::Code};
use reqwest::{Method, header};

use crate::support::{Served, at, problem, raw};

#[tokio::test]
async fn paths_methods_and_media_types_that_do_not_exist() {
    let served = Served::start().await;
    let http = served.unix();
    for path in ["/nope", "/v1", "/v1/", "/v1/vms/", "/v1/content", "/docs/nope.js", "//", "/v1/vms/a/b/c"] {
        problem(http.get(at(path)).send().await.unwrap(), Code::NotFound).await;
    }
    for (method, path, allow) in [
        (Method::DELETE, "/v1/vms", "GET,HEAD"),
        (Method::PUT, "/v1/vms/x/pages", "GET,HEAD"),
        (Method::GET, "/v1/content/lookup", "POST"),
        (Method::POST, "/", "GET,HEAD"),
        (Method::from_bytes(b"BREW").unwrap(), "/metrics", "GET,HEAD"),
    ] {
        let answer = http.request(method, at(path)).send().await.unwrap();
        assert_eq!(answer.headers()[header::ALLOW], allow, "{path}");
        problem(answer, Code::MethodNotAllowed).await;
    }
    for path in ["/v1/vms", "/v1/events", "/metrics"] {
        let answer = http.get(at(path)).header(header::ACCEPT, "image/png").send().await.unwrap();
        problem(answer, Code::NotAcceptable).await;
    }
    let answer = http.post(at("/v1/content/lookup")).header(header::CONTENT_TYPE, "text/plain").body("x");
    problem(answer.send().await.unwrap(), Code::UnsupportedMediaType).await;
    problem(http.post(at("/v1/content/lookup")).send().await.unwrap(), Code::UnsupportedMediaType).await;
    problem(http.post(at("/v1/content/pages")).json(&()).send().await.unwrap(), Code::UnsupportedMediaType)
        .await;
}

#[tokio::test]
async fn vms_that_do_not_exist() {
    let served = Served::start().await;
    let http = served.unix();
    for key in [
        "x",
        "4294967295",
        "99999999999999999999",
        "%20",
        "a%2Fb",
        "%F0%9F%90%8C",
        "..%2F..",
        &"x".repeat(3000),
    ] {
        for path in ["", "/pages", "/diff?to=unix:/x"] {
            let answer = http.get(at(&format!("/v1/vms/{key}{path}"))).send().await.unwrap();
            problem(answer, Code::VmNotFound).await;
        }
        for path in ["/sync", "/verify"] {
            let answer = http.post(at(&format!("/v1/vms/{key}{path}"))).send().await.unwrap();
            problem(answer, Code::VmNotFound).await;
        }
    }
    problem(http.get(at("/v1/vms/%FF")).send().await.unwrap(), Code::BadRequest).await;
    problem(http.get(at(&format!("/v1/vms/{}", "x".repeat(5000)))).send().await.unwrap(), Code::BadRequest)
        .await;
}

#[tokio::test]
async fn a_problem_never_repeats_control_characters() {
    let served = Served::start().await;
    let answer = served.unix().get(at("/v1/vms/%1B%5B2J%E2%80%AE")).send().await.unwrap();
    let problem = problem(answer, Code::VmNotFound).await;
    assert!(!problem.detail.contains(['\u{1b}', '\u{202e}']), "{problem:?}");
}

#[tokio::test]
async fn bodies_that_are_not_what_they_claim_to_be() {
    let served = Served::start().await;
    let http = served.unix();
    let lookup = |media: &'static str, body: Vec<u8>| {
        http.post(at("/v1/content/lookup")).header(header::CONTENT_TYPE, media).body(body).send()
    };
    let mut announces_more = bulk::encode_fingerprints(bulk::KeyId::PLAIN, &[]);
    announces_more[4] = 9;
    let mut announces_too_many = announces_more.clone();
    announces_too_many[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    for body in [b"".to_vec(), b"MXF1".to_vec(), vec![0xff; 500], announces_more] {
        problem(lookup(bulk::FINGERPRINTS, body).await.unwrap(), Code::BadRequest).await;
    }
    problem(lookup(bulk::FINGERPRINTS, announces_too_many).await.unwrap(), Code::TooLarge).await;
    for body in [
        "",
        "{",
        "[]",
        "{\"fingerprints\":[1]}",
        "{\"fingerprints\":[\"xyz\"]}",
        "{\"fingerprints\":[],\"x\":1}",
    ] {
        problem(lookup("application/json", body.into()).await.unwrap(), Code::BadRequest).await;
    }
    let deep = "[".repeat(100_000);
    problem(lookup("application/json", deep.into()).await.unwrap(), Code::BadRequest).await;
}

/// What the HTTP library refuses by itself ends the connection with a 4xx; nothing of it reaches a resource.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_http_is_refused() {
    let served = Served::start().await;
    tokio::task::spawn_blocking(move || {
        for request in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"[..],
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
            b"POST /v1/content/lookup HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: gzip\r\n\r\n",
        ] {
            let answer = raw(&served, request);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
        let many = (0..500).map(|n| format!("h{n}: x\r\n")).collect::<String>();
        let answer = raw(&served, format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(1 << 20));
        assert!(!raw(&served, long.as_bytes()).starts_with("HTTP/1.1 200"));
        assert!(raw(&served, b"GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"), "it still serves");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_description_in_git_is_the_one_of_the_code() {
    let served = Served::start().await;
    let now = served.unix().get(at("/openapi.json")).send().await.unwrap();
    let now: serde_json::Value = now.json().await.unwrap();
    let text = serde_json::to_string_pretty(&now).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("openapi.json");
    if std::env::var_os("MEMDEX_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "the interface has changed: look at it, then run this test with MEMDEX_BLESS=1");
    for (path, item) in now["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(
                operation["operationId"].is_string() && operation["summary"].is_string(),
                "{method} {path}"
            );
        }
    }
    let codes = &now["components"]["schemas"]["Code"];
    assert!(codes.is_object(), "the codes of problems are described");
}

#[tokio::test]
async fn the_documentation_is_complete_without_a_network() {
    let served = Served::start().await;
    let http = served.unix();
    let page = http.get(at("/docs/")).send().await.unwrap().text().await.unwrap();
    assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    for file in ["swagger-ui-bundle.js", "swagger-ui.css", "swagger-initializer.js"] {
        let answer = http.get(at(&format!("/docs/{file}"))).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{file}");
    }
    let dashboard = http.get(at("/")).send().await.unwrap();
    let policy = dashboard.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let page = dashboard.text().await.unwrap();
    assert!(
        page.contains(&format!("<script nonce=\"{nonce}\">")) && !page.contains("{{"),
        "the script may run"
    );
    for outside in ["src=\"http", "href=\"http", "url(", "@import", "innerHTML"] {
        assert!(!page.contains(outside), "{outside}");
    }
}
