//! Protects `/v1/migrations` from requests that make no sense, and the connections of migrations from those who are not daemons.

use memdex_wire::{
    migration::{Migration, MigrationRequest},
    problem::Code,
    transfer::PROTOCOL,
};
use serde_json::json;

use crate::support::{Served, Vm, at, problem};

#[tokio::test]
async fn migrations_that_do_not_exist() {
    let served = Served::start().await;
    let http = served.unix();
    assert_eq!(
        http.get(at("/v1/migrations")).send().await.unwrap().json::<Vec<Migration>>().await.unwrap(),
        []
    );
    for id in ["7", "deadbeefdeadbeef", "%20", &"x".repeat(3000)] {
        let path = format!("/v1/migrations/{id}");
        problem(http.get(at(&path)).send().await.unwrap(), Code::MigrationNotFound).await;
        problem(http.post(at(&format!("{path}/abort"))).send().await.unwrap(), Code::MigrationNotFound).await;
        problem(http.post(at(&format!("{path}/stream"))).send().await.unwrap(), Code::MigrationNotFound)
            .await;
    }
}

#[tokio::test]
async fn requests_that_make_no_sense() {
    let served = Served::start().await;
    let http = served.unix();
    let vm = Vm::start("moves", &[1]);
    for path in ["/v1/migrations", "/v1/migrations/plan"] {
        let post = |request: MigrationRequest| http.post(at(path)).json(&request).send();
        let to = "unix:/nowhere.sock";
        problem(post(MigrationRequest::new("nobody", to)).await.unwrap(), Code::VmNotFound).await;
        for (body, code) in [
            (json!({"vm": "x"}), Code::BadRequest),
            (json!({"vm": "x", "to": to, "more": 1}), Code::BadRequest),
            (json!([]), Code::BadRequest),
        ] {
            problem(http.post(at(path)).json(&body).send().await.unwrap(), code).await;
        }
        let text = http.post(at(path)).header("content-type", "text/plain").body("x").send().await.unwrap();
        problem(text, Code::UnsupportedMediaType).await;
        for (change, words) in [
            (json!({"downtime_ms": 0}), "downtime"),
            (json!({"downtime_ms": 86_400_000}), "downtime"),
            (json!({"max_bandwidth": 5}), "bandwidth"),
            (json!({"compression": "fast"}), "expected one of `auto`, `zstd`, `none`"),
            (json!({"qmp": "relative"}), "absolute"),
            (json!({"dest_qmp": "relative"}), "absolute"),
            (json!({"to": "tcp://10.0.0.1:1"}), "tls://"),
            (json!({"to": "nobody"}), "--peer"),
        ] {
            let mut body = json!({"vm": vm.name, "to": to});
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let answer = http.post(at(path)).json(&body).send().await.unwrap();
            let problem = problem(answer, Code::BadRequest).await;
            assert!(problem.detail.contains(words), "{problem}");
        }
    }
}

#[tokio::test]
async fn connections_of_migrations_are_for_daemons() {
    let served = Served::start().await;
    let http = served.unix();
    for id in ["x", "0123456", "0123456G", &"a".repeat(65)] {
        let answer = http.post(at(&format!("/v1/migrations/{id}/receive"))).send().await.unwrap();
        problem(answer, Code::BadRequest).await;
    }
    let answer = http.post(at("/v1/migrations/0123456789abcdef/receive")).send().await.unwrap();
    problem(answer, Code::BadRequest).await;
    // Without a token nobody is let in on TCP, whatever they want to speak.
    let request = reqwest::Client::new().post(served.tcp_url("/v1/migrations/0123456789abcdef/receive"));
    let request = request.header("connection", "upgrade").header("upgrade", PROTOCOL);
    problem(request.send().await.unwrap(), Code::Unauthorized).await;
}
