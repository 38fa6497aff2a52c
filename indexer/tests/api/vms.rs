//! VMs: listed, found, synced, verified, compared, gone.

use std::time::Duration;

use memdex_wire::{
    diff::{Diff, DiffCounts},
    job::{SyncReport, VerifyReport},
    problem::Code,
    vm::VmInfo,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Served, Vm, at, host, problem};

#[tokio::test]
async fn a_vm_is_found_by_id_name_and_pid() {
    let served = Served::start().await;
    let vm = Vm::start("found", &[1, 2, 3]);
    let http = served.unix();
    let all: Vec<VmInfo> = http.get(at("/v1/vms")).send().await.unwrap().json().await.unwrap();
    let info = all.iter().find(|info| info.name == vm.name).unwrap();
    assert_eq!((info.pid, info.memory_bytes, info.page_size), (vm.pid(), 16 << 20, 4096));
    for key in [&info.id, &info.name, &info.pid.to_string()] {
        let answer = http.get(at(&format!("/v1/vms/{key}"))).send().await.unwrap();
        assert_eq!(answer.headers()["etag"].len() - 2, info.generation.to_string().len());
        let one: VmInfo = answer.json().await.unwrap();
        assert_eq!(one.id, info.id);
        assert_eq!(one.pages.absent + one.pages.zero + one.pages.current + one.pages.stale, one.pages.total);
    }
}

#[tokio::test]
async fn two_vms_of_one_name_are_a_conflict_that_lists_their_ids() {
    let served = Served::start().await;
    let vm = Vm::start("twin", &[1]);
    // A second QEMU process of that name, with memory of its own.
    let mut twin = std::process::Command::new("qemu-system-x86_64")
        .args(["-S", "-name", &vm.name, "-m", "16", "-display", "none", "-nodefaults", "-accel", "tcg"])
        .spawn()
        .unwrap();
    let http = served.unix();
    let mut answer = http.get(at(&format!("/v1/vms/{}", vm.name))).send().await.unwrap();
    for _ in 0..200 {
        if answer.status() == 409 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = http.get(at(&format!("/v1/vms/{}", vm.name))).send().await.unwrap();
    }
    twin.kill().unwrap();
    twin.wait().unwrap();
    let problem = problem(answer, Code::VmAmbiguous).await;
    assert!(problem.detail.contains(&format!("vm-{}-", vm.pid())), "{problem}");
}

#[tokio::test]
async fn sync_and_verify_report() {
    let served = Served::start().await;
    let vm = Vm::start("jobs", &[1, 2, 2]);
    let http = served.unix();
    for body in ["", "{}", "{\"timeout_ms\": 20000}"] {
        let request =
            http.post(at(&format!("/v1/vms/{}/sync", vm.name))).header("content-type", "application/json");
        let report: SyncReport = request.body(body).send().await.unwrap().json().await.unwrap();
        assert_eq!((report.pages.total, report.pages.stale), (4096, 0));
    }
    let answer = http.post(at(&format!("/v1/vms/{}/verify", vm.name))).send().await.unwrap();
    let report: VerifyReport = answer.json().await.unwrap();
    assert_eq!(report.mismatches, 0, "{report:?}");
}

#[tokio::test]
async fn a_vm_that_ends_is_gone() {
    let served = Served::start().await;
    let mut vm = Vm::start("ends", &[1]);
    let http = served.unix();
    let mut events = http.get(at("/v1/events")).send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    vm.kill();
    let mut seen = String::new();
    let wait = async {
        while !(seen.contains("event: vm-gone\n") && seen.contains(&vm.name)) {
            seen.push_str(&String::from_utf8_lossy(&events.chunk().await.unwrap().unwrap()));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    problem(http.get(at(&format!("/v1/vms/{}", vm.name))).send().await.unwrap(), Code::VmNotFound).await;
}

#[tokio::test]
async fn a_diff_counts_pages_and_asks_for_each_content_once() {
    let served = Served::start().await;
    let vm = Vm::start("diff", &[1, 1, 1, 2, 0]);
    let http = served.unix();
    let to = format!("unix:{}", served.socket().display());
    let before = counter(&http, "memdex_http_looked_up_fingerprints_total").await;
    let answer =
        http.get(at(&format!("/v1/vms/{}/diff", vm.name))).query(&[("to", &to)]).send().await.unwrap();
    let diff: Diff = answer.json().await.unwrap();
    // The host is compared with itself: everything it knows is there.
    let expected = DiffCounts { total: 4096, zero: 4092, matched: 4, missing: 0, stale: 0 };
    assert_eq!((diff.pages, diff.bytes), (expected, expected.in_bytes()), "{diff:?}");
    assert_eq!(diff.to, to);
    assert_eq!(counter(&http, "memdex_http_looked_up_fingerprints_total").await - before, 2.0);
}

#[tokio::test]
async fn a_peer_that_lacks_everything_gets_everything() {
    let served = Served::start().await;
    let vm = Vm::start("lacks", &[3, 3, 4]);
    // A peer that answers every lookup with the empty bitmap.
    let peer = tokio::net::UnixListener::bind(served.folder.path().join("far.sock")).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = peer.accept().await.unwrap();
        let mut seen = vec![0; 1 << 16];
        let _ = stream.read(&mut seen).await.unwrap();
        let body = memdex_wire::bulk::encode_bitmap(2, &roaring::RoaringBitmap::new());
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
            memdex_wire::bulk::BITMAP,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    let url = at(&format!("/v1/vms/{}/diff?to=far", vm.name));
    let diff: Diff = served.unix().get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!((diff.pages.missing, diff.pages.matched, diff.pages.zero), (3, 0, 4093));
}

#[tokio::test]
async fn peers_that_are_away_strange_or_locked_are_told_apart() {
    let served = Served::start().await;
    let vm = Vm::start("peers", &[1]);
    let http = served.unix();
    let diff = |to: String| http.get(at(&format!("/v1/vms/{}/diff", vm.name))).query(&[("to", to)]).send();
    let away = problem(diff("far".into()).await.unwrap(), Code::PeerUnreachable).await;
    assert!(away.retryable);

    let other = Served::start().await;
    let locked = diff(format!("tcp://127.0.0.1:{}", other.tcp)).await.unwrap();
    problem(locked, Code::PeerUnauthorized).await;

    let strange = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = strange.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = strange.accept().await {
            let mut seen = vec![0; 1 << 16];
            let _ = stream.read(&mut seen).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi")
                .await;
        }
    });
    problem(diff(format!("tcp://127.0.0.1:{port}")).await.unwrap(), Code::PeerProtocol).await;
}

#[tokio::test]
async fn metrics_are_well_formed_and_complete() {
    let served = Served::start().await;
    let vm = Vm::start("metrics", &[1]);
    let http = served.unix();
    let answer = http.get(at("/metrics")).send().await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text().await.unwrap();
    let mut kinds = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(name.starts_with("memdex_") && kinds.contains_key(name), "{line}");
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        }
    }
    assert!(text.ends_with('\n'));
    let id = host().find(&vm.name).unwrap().id().to_owned();
    let current = format!("memdex_vm_pages{{vm=\"{id}\",name=\"{}\",state=\"current\"}} 1", vm.name);
    assert!(text.lines().any(|line| line == current), "{text}");
    for name in [
        "memdex_vm_mismatches_total",
        "memdex_hook_attached",
        "memdex_index_bytes",
        "memdex_http_requests_total",
    ] {
        assert!(kinds.contains_key(name), "{name}");
    }
}

async fn counter(http: &reqwest::Client, name: &str) -> f64 {
    let text = http.get(at("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
