//! Migrations through the library: a host that answers properly, and ones that do not.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as expected")]

mod peer;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use memdex_wire::migration::{Migration, MigrationRequest, Outcome, Phase};
use migrate_client::{Client, ClientOptions, HostUrl, Token, limits};
use peer::{Peer, good::GoodHost, hasty, ok, problem};

fn clients(host: &GoodHost) -> [Client; 2] {
    let token = Some(Token::new(host.token).unwrap());
    [
        Client::new(host.unix.clone(), ClientOptions::default()).unwrap(),
        Client::new(host.tcp.clone(), ClientOptions { token, ..ClientOptions::default() }).unwrap(),
    ]
}

fn to(destination: &str) -> MigrationRequest {
    MigrationRequest::new("vm1", destination)
}

#[tokio::test]
async fn a_migration_is_planned_begun_and_followed() {
    let host = GoodHost::new();
    for client in clients(&host) {
        let plan = client.plan(&to("tls://host-2:1")).await.unwrap();
        assert!(plan.possible && plan.pages.missing == 300);
        assert!(!client.plan(&to("impossible")).await.unwrap().possible);
        assert!(client.migrations().await.unwrap().is_empty());

        let begun = client.migrate(&to("tls://host-2:1")).await.unwrap();
        assert_eq!((begun.phase, begun.outcome), (Phase::Checking, None));
        let mut phases = vec![];
        let ended = client.follow_migration(&begun.id, |state| phases.push(state.phase)).await.unwrap();
        assert_eq!(ended.outcome, Some(Outcome::Completed));
        assert_eq!(phases, [Phase::Copying, Phase::Copying, Phase::HandingOver, Phase::Completed]);
        // It stays for a while.
        assert_eq!(client.migration(&begun.id).await.unwrap(), ended);
        assert_eq!(client.follow_migration(&begun.id, |_| ()).await.unwrap(), ended);
        assert_eq!(client.migrations().await.unwrap(), [ended]);

        let mut states = client.watch_migration(&begun.id);
        assert!(states.next().await.unwrap().unwrap().phase.is_end());
        assert!(states.next().await.is_none());
        let all: Vec<_> = client.watch_migration(&begun.id).into_stream().try_collect().await.unwrap();
        assert_eq!(all.len(), 1);
    }
}

#[tokio::test]
async fn a_migration_is_called_off_unless_it_is_too_late() {
    let host = GoodHost::new();
    for client in clients(&host) {
        let begun = client.migrate(&to("endless")).await.unwrap();
        let asked = client.abort_migration(&begun.id).await.unwrap();
        assert!(!asked.phase.is_end());
        let ended = client.follow_migration(&begun.id, |_| ()).await.unwrap();
        assert_eq!(ended.outcome, Some(Outcome::Aborted));

        let late = client.migrate(&to("late")).await.unwrap();
        let error = client.abort_migration(&late.id).await.unwrap_err();
        assert!(error.is_conflict() && !error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let host = GoodHost::new();
    for client in clients(&host) {
        assert!(client.migrate(&to("conflict")).await.unwrap_err().is_conflict());
        let error = client.migrate(&to("unreachable")).await.unwrap_err();
        assert!(error.is_unreachable() && error.is_retryable(), "{error}");
        assert!(client.plan(&MigrationRequest::new("x", "h")).await.unwrap_err().is_not_found());
        for id in ["nothing", "", "..", "m/1", "../vms"] {
            assert!(client.migration(id).await.unwrap_err().is_not_found(), "{id}");
            assert!(client.abort_migration(id).await.unwrap_err().is_not_found(), "{id}");
            assert!(client.follow_migration(id, |_| ()).await.unwrap_err().is_not_found(), "{id}");
        }
    }
}

/// A migration that is under way.
fn copying() -> Migration {
    serde_json::from_value(serde_json::json!({
        "id": "m1", "direction": "outgoing", "vm": "id-1", "name": "vm1", "to": "h", "dest_vm": "vm1", "phase": "copying",
        "total_ms": 1, "blackout_ms": 0, "rounds": 1, "pages": {"total": 1, "zero": 0, "matched": 0, "sent": 0},
        "bytes": {"total": 4096, "zero": 0, "matched": 0, "sent": 0, "wire": 0}, "log": [], "from_the_future": true,
        "progress": {"remaining_bytes": 1, "rate": 1, "dirty_rate": 1, "throttle_percent": 0, "compression_level": 0},
    }))
    .unwrap()
}

/// Answers look number `n` with what `answer` says; nothing means that the connection is closed.
fn looked_at(answer: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> Peer {
    let looks = AtomicUsize::new(0);
    Peer::new(move |_, connection| connection.write_all(&answer(looks.fetch_add(1, Ordering::SeqCst))))
}

fn state(phase: Phase) -> Vec<u8> {
    ok("application/json", serde_json::to_vec(&Migration { phase, ..copying() }).unwrap())
}

fn client(peer: &Peer, sight: Duration) -> Client {
    let timeouts = migrate_client::Timeouts { sight, ..hasty() };
    Client::new(peer.unix.clone(), ClientOptions { timeouts, ..ClientOptions::default() }).unwrap()
}

/// What a daemon says that is starting.
fn not_yet() -> Vec<u8> {
    let answer = String::from_utf8(problem(503, "unavailable", "starting")).unwrap();
    // One byte less, so that the length stays right.
    answer.replace(r#""retryable":false"#, r#""retryable": true"#).into()
}

#[tokio::test]
async fn a_host_that_is_away_for_a_moment_is_waited_for() {
    let peer = looked_at(|look| match look {
        1..4 | 6 => vec![],
        7..9 => not_yet(),
        0 | 4 | 5 | 9 => state(Phase::Copying),
        _ => state(Phase::Completed),
    });
    let mut seen = 0;
    let ended = client(&peer, Duration::from_secs(5)).follow_migration("m1", |_| seen += 1).await.unwrap();
    assert_eq!((ended.phase, seen), (Phase::Completed, 5));
}

#[tokio::test]
async fn patience_ends_and_begins_anew_with_every_answer() {
    for silent in [false, true] {
        let peer = looked_at(move |look| match look % 3 {
            _ if look < 7 => state(Phase::Copying),
            _ if silent => {
                std::thread::sleep(Duration::from_secs(3));
                vec![]
            }
            _ => vec![],
        });
        let mut states = client(&peer, Duration::from_secs(1)).watch_migration("m1");
        let mut last = Instant::now();
        let error = loop {
            match states.next().await.unwrap() {
                Ok(_) => last = Instant::now(),
                Err(error) => break error,
            }
        };
        assert!((1.0..3.0).contains(&last.elapsed().as_secs_f64()), "{:?}", last.elapsed());
        assert!(error.is_unreachable() && error.is_retryable(), "{error}");
        let text = error.to_string();
        assert!(text.contains("goes on without us") && text.contains("`memdex migrations m1`"), "{text}");
        assert!(states.next().await.is_none());
    }
}

#[tokio::test]
async fn a_host_that_has_forgotten_is_no_typing_mistake() {
    let peer = looked_at(|look| match look {
        0 => state(Phase::Copying),
        _ => problem(404, "migration_not_found", "there is none"),
    });
    let client = client(&peer, Duration::from_secs(5));
    let error = client.follow_migration("m1", |_| ()).await.unwrap_err();
    assert!(!error.is_not_found() && !error.is_unreachable() && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains("where the VM runs"), "{error}");
    assert!(client.follow_migration("m1", |_| ()).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn answers_about_a_migration_are_bounded_and_checked() {
    let huge = vec![b' '; limits::MAX_MIGRATION_BYTES + 1];
    let mut odd = serde_json::to_value(copying()).unwrap();
    odd["phase"] = "beamed".into();
    for (answer, word) in [
        (ok("application/json", huge), "larger than"),
        (ok("application/json", "{}"), "not the memdex protocol"),
        (ok("application/json", odd.to_string()), "not the memdex protocol"),
        (ok("text/plain", "m1"), "media type"),
    ] {
        let peer = Peer::says(answer);
        for client in peer.clients() {
            for error in [
                client.migration("m1").await.unwrap_err(),
                client.follow_migration("m1", |_| ()).await.unwrap_err(),
                client.abort_migration("m1").await.unwrap_err(),
                client.plan(&to("h")).await.unwrap_err(),
            ] {
                assert!(error.to_string().contains(word), "{error}");
            }
            let error = client.migrate(&to("h")).await.unwrap_err();
            assert!(error.to_string().contains("may have begun"), "{error}");
        }
    }
}

#[tokio::test]
async fn nobody_there_means_that_nothing_has_begun() {
    let (_folder, path) = peer::nobody();
    let options = ClientOptions { timeouts: hasty(), ..ClientOptions::default() };
    let client = Client::new(HostUrl::Unix(path), options).unwrap();
    let error = client.migrate(&to("h")).await.unwrap_err();
    assert!(error.is_unreachable() && !error.to_string().contains("begun"), "{error}");
}
