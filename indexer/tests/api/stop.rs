//! Ending: streams end, sockets go, nobody holds it up.

use std::{io::Write, time::Duration};

use memdex_wire::problem::Code;

use crate::support::{Served, Vm, at, problem};

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_and_idle_connections_do_not_hold_up_the_stop() {
    let mut served = Served::start().await;
    let http = served.unix();
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(http.get(at("/v1/events")).send().await.unwrap());
    }
    let mut half_a_request = served.connect();
    half_a_request.write_all(b"GET / HT").unwrap();
    let _idle = served.connect();
    let took = served.finish().await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    for mut stream in events {
        while let Ok(Some(_)) = stream.chunk().await {}
    }
    assert!(!served.socket().exists(), "the socket file is gone");
    assert!(http.get(at("/healthz")).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_does_not_hold_up_the_stop() {
    let mut served = Served::start().await;
    let vm = Vm::start("unread", &[1]);
    let mut stream = served.connect();
    let request = format!("GET /v1/vms/{}/pages HTTP/1.1\r\nhost: a\r\n\r\n", vm.name);
    stream.write_all(request.as_bytes()).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let took = served.finish().await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_under_way_is_told_that_the_daemon_stops() {
    let mut served = Served::start().await;
    let vm = Vm::start("work", &[1]);
    // A peer that takes the question and never answers.
    let silent = tokio::net::UnixListener::bind(served.folder.path().join("far.sock")).unwrap();
    let url = at(&format!("/v1/vms/{}/diff?to=far", vm.name));
    let waiting = tokio::spawn(served.unix().get(url).send());
    let _asked = silent.accept().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(served.finish().await < Duration::from_secs(4));
    let problem = problem(waiting.await.unwrap().unwrap(), Code::Unavailable).await;
    assert!(problem.retryable && problem.detail.contains("stopping"));
}
