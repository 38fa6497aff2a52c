//! `memdex migrate` as a program: what it prints, where, how it exits, and what a signal does.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as expected")]

mod peer;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use memdex_wire::migration::{AtSource, Compression, Migration, MigrationRequest, OnNoConverge};
use peer::{
    Peer,
    command::{done, memdex, run, steers, told},
    good::GoodHost,
    ok, problem,
};
use serde_json::Value;

#[test]
fn a_migration_that_completes_tells_what_it_cost() {
    let host = GoodHost::new();
    let (code, out, talk) = run(&host.unix, &["migrate", "vm1", "--to", "tls://host-2:1"]);
    assert_eq!(code, 0, "{talk}");
    assert_eq!(talk.lines().count(), 1, "{talk}");
    for word in ["300 new, 600 already there, 2,000 zero, 100 not known yet", "about 585.9 KiB on the wire"] {
        assert!(talk.contains(word), "{word}: {talk}");
    }
    for word in [
        "to tls://host-2:1: completed: 400 new, 600 already there, 2,000 zero: 86.7 % saved",
        "2.0 MiB, 17.1 % of memory, both ways",
        "total time   4.0 s",
        "downtime     41.2 ms (blackout)",
        "iterations   4",
    ] {
        assert!(out.contains(word), "{word}: {out}");
    }
    assert!(!steers(&out) && !steers(&talk));
    // The line before is an extra: without it the migration goes on.
    let (code, _, talk) = run(&host.unix, &["migrate", "vm1", "--to", "noplan"]);
    assert_eq!((code, talk.as_str()), (0, ""));
}

#[test]
fn json_is_one_document_with_the_keys_of_the_contract() {
    let host = GoodHost::new();
    for (to, outcome, code) in [("host-2", "completed", 0), ("fails", "failed", 1)] {
        for format in ["json", "jsonl"] {
            let (actual, out, _) = run(&host.unix, &["migrate", "vm1", "--to", to, "-o", format]);
            assert_eq!(actual, code);
            let document: Value = serde_json::from_str(&out).unwrap();
            for key in
                ["vm", "to", "outcome", "reason", "total_ms", "blackout_ms", "rounds", "bytes", "pages"]
            {
                assert!(document.get(key).is_some(), "{key}: {out}");
            }
            for key in ["total", "zero", "matched", "sent", "wire"] {
                assert!(document["bytes"][key].is_u64(), "{key}: {out}");
            }
            assert_eq!((&document["vm"], &document["to"]), (&"id-1".into(), &to.into()));
            assert_eq!(document["outcome"], outcome);
            assert_eq!(document["reason"].is_null(), code == 0);
            assert_eq!(format == "jsonl", out.lines().count() == 1);
        }
    }
}

#[test]
fn progress_is_one_object_a_line() {
    let host = GoodHost::new();
    let arguments = ["migrate", "vm1", "--to", "host-2", "-o", "json", "--progress", "json"];
    let (code, out, progress) = run(&host.unix, &arguments);
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["outcome"], "completed");
    let lines: Vec<Value> = progress.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        for key in [
            "command",
            "vm",
            "id",
            "phase",
            "rounds",
            "pages",
            "bytes",
            "remaining_bytes",
            "rate",
            "dirty_rate",
            "expected_ms",
            "throttle_percent",
            "elapsed_ms",
        ] {
            assert!(line.get(key).is_some(), "{key}: {line}");
        }
    }
    let phases: Vec<_> = lines.iter().map(|line| line["phase"].as_str().unwrap()).collect();
    for phase in ["checking", "copying", "handing_over"] {
        assert!(phases.contains(&phase), "{phases:?}");
    }
    assert_eq!(phases.iter().filter(|phase| **phase == "completed").count(), 1);
    assert_eq!(phases.last(), Some(&"completed"));
}

#[test]
fn a_failed_migration_shows_its_log_and_steers_no_terminal() {
    let host = GoodHost::new();
    let (code, out, talk) = run(&host.unix, &["migrate", "vm1", "--to", "fails"]);
    assert_eq!(code, 1);
    assert!(out.contains("to fails: failed"), "{out}");
    assert!(talk.contains("failed: the guest") && talk.contains("line 29"), "{talk}");
    assert!(!talk.contains("line 7"), "only the end of the log: {talk}");
    assert!(!steers(&out) && !steers(&talk), "{out:?} {talk:?}");
    for arguments in [
        &["migrations"][..],
        &["migrations", "m/1?"],
        &["migrate", "vm1", "--to", "conflict"],
        &["migrate", "vm1", "--to", "impossible", "--dry-run"],
        &["plan", "vm1", "--to", "impossible"],
    ] {
        let (_, out, talk) = run(&host.unix, arguments);
        assert!(!steers(&out) && !steers(&talk), "{arguments:?}: {out:?} {talk:?}");
        assert!((out + &talk).contains("writes"), "{arguments:?}");
    }
}

#[test]
fn every_option_reaches_the_host() {
    let host = GoodHost::new();
    let id = done(&host.unix, &["migrate", "vm1", "--to", "endless", "--detach"]);
    let asked = |id: &str| -> MigrationRequest {
        let one: Migration =
            serde_json::from_str(&done(&host.unix, &["migrations", id.trim(), "-o", "json"])).unwrap();
        serde_json::from_str(&one.log[30].text).unwrap()
    };
    assert_eq!(asked(&id), MigrationRequest::new("vm1", "endless"));
    let arguments = "migrate vm1 --to endless --detach --dest-vm vm2 --max-bandwidth 125M --compression zstd --downtime 1s --on-no-converge throttle \
                     --source pause --qmp /run/a.sock --dest-qmp /run/b.sock";
    let id = done(&host.unix, &arguments.split_whitespace().collect::<Vec<_>>());
    let expected = MigrationRequest {
        dest_vm: Some("vm2".to_owned()),
        max_bandwidth: Some(125_000_000),
        compression: Compression::Zstd,
        downtime_ms: Some(1000),
        on_no_converge: OnNoConverge::Throttle,
        at_source: AtSource::Pause,
        qmp: Some("/run/a.sock".to_owned()),
        dest_qmp: Some("/run/b.sock".to_owned()),
        ..MigrationRequest::new("vm1", "endless")
    };
    assert_eq!(asked(&id), expected);
}

#[test]
fn what_cannot_begin_has_its_exit_code() {
    let host = GoodHost::new();
    let unix = host.unix.to_string();
    for (code, arguments) in [
        (2, "migrate vm1"),
        (2, "migrate --to tls://h:1"),
        (2, "migrate vm1 --to host:1"),
        (2, "migrate vm1 --to h --max-bandwidth fast"),
        (2, "migrate vm1 --to h --downtime 0s"),
        (2, "migrate vm1 --to h --on-no-converge pray"),
        (2, "migrate vm1 --to h --source burn"),
        (2, "migrate vm1 --to h --dry-run --detach"),
        (2, "plan vm1"),
        (2, "abort"),
        (3, "migrate nothing --to h"),
        (3, "migrate nothing --to h --dry-run"),
        (3, "migrations nothing"),
        (3, "abort nothing"),
        (3, "abort .."),
        (4, "migrate vm1 --to unreachable"),
        (5, "migrate vm1 --to conflict"),
        (5, "migrate vm1 --to conflict -o json"),
    ] {
        let (actual, out, error) = run(&unix, &arguments.split(' ').collect::<Vec<_>>());
        assert_eq!((actual, out.as_str()), (code, ""), "{arguments}: {error}");
        if code != 2 {
            let last = error.lines().last().unwrap();
            assert!(last.starts_with("memdex: "), "{error}");
        }
    }
}

/// Starts a migration and waits until the host has this in its list.
fn until(host: &GoodHost, word: &str, arguments: &[&str]) -> Child {
    let mut child = memdex(&host.unix)
        .args(["migrate", "vm1", "--to"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !done(&host.unix, &["migrations"]).contains(word) {
        assert!(started.elapsed() < Duration::from_secs(10) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}

fn under_way(host: &GoodHost, to: &str, more: &[&str]) -> Child {
    until(host, "copying", &[&[to], more].concat())
}

/// Sends a signal, waits until that is answered with a sentence, and sends it again. What is said after.
fn send_twice(child: &mut Child) -> String {
    send(child, "-INT");
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("interrupted") {
        line.clear();
        assert_ne!(talk.read_line(&mut line).unwrap(), 0);
    }
    send(child, "-INT");
    line.clear();
    talk.read_to_string(&mut line).unwrap();
    line
}

fn send(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_signal_calls_the_migration_off_and_waits_for_that() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        let host = GoodHost::new();
        let child = under_way(&host, "endless", &["-o", "json"]);
        send(&child, signal);
        let (code, out, talk) = told(&child.wait_with_output().unwrap());
        assert_eq!(code, 130, "{talk}");
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["outcome"], "aborted");
        assert!(talk.contains("being called off") && talk.contains("interrupted"), "{talk}");
        assert!(!steers(&talk), "{talk:?}");
    }
}

#[test]
fn too_late_to_abort_is_said_and_the_end_is_waited_for() {
    let host = GoodHost::new();
    let child = under_way(&host, "late", &[]);
    send(&child, "-INT");
    let (code, out, talk) = told(&child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{talk}");
    assert!(talk.contains("too late") && talk.contains("handed over"), "{talk}");
    assert!(out.contains("completed"), "{out}");
}

#[test]
fn a_second_signal_leaves_at_once_and_says_what_goes_on() {
    let host = GoodHost::new();
    let mut child = under_way(&host, "stubborn-endless", &[]);
    let started = Instant::now();
    let talk = send_twice(&mut child);
    let (code, out, _) = told(&child.wait_with_output().unwrap());
    assert!(started.elapsed() < Duration::from_secs(4));
    assert_eq!((code, out.as_str()), (130, ""), "{talk}");
    assert!(talk.contains("goes on at the host") && talk.contains("memdex migrations m/1?"), "{talk}");
}

#[test]
fn a_migration_that_does_not_end_is_left_after_a_while() {
    let host = GoodHost::new();
    let child = under_way(&host, "stubborn-endless", &["-o", "json"]);
    let started = Instant::now();
    send(&child, "-TERM");
    let (code, out, talk) = told(&child.wait_with_output().unwrap());
    assert!((14..20).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!((code, out.as_str()), (130, ""), "{talk}");
    assert!(talk.contains("not ended within 15s"), "{talk}");
}

#[test]
fn a_signal_while_it_begins_is_kept_in_mind() {
    let host = GoodHost::new();
    let arguments = ["thinks-endless", "-o", "json", "--detach"];
    let child = until(&host, "m/1?", &arguments);
    send(&child, "-INT");
    let (code, out, talk) = told(&child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{talk}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["outcome"], "aborted");
    // Twice: it is not known yet whether it begins.
    let mut child = until(&host, "m/2?", &arguments);
    let talk = send_twice(&mut child);
    let (code, out, _) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (130, ""), "{talk}");
    assert!(talk.contains("may begin all the same"), "{talk}");
}

#[test]
fn a_host_that_vanishes_is_waited_for_and_then_left_with_a_hint() {
    let host = GoodHost::new();
    let mut child = under_way(&host, "endless", &[]);
    let started = Instant::now();
    drop(host);
    let code = child.wait().unwrap().code();
    let mut talk = String::new();
    child.stderr.unwrap().read_to_string(&mut talk).unwrap();
    assert_eq!(code, Some(4), "{talk}");
    assert!((9..15).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert!(talk.contains("goes on without us") && talk.contains("memdex migrations m/1?"), "{talk}");
}

#[test]
fn a_start_without_an_answer_is_no_promise_that_nothing_moves() {
    for answer in [b"".to_vec(), ok("application/json", "{\"id\": 7}"), ok("text/html", "hello")] {
        let (code, out, error) =
            run(&Peer::says(answer).unix, &["migrate", "vm1", "--to", "h", "-o", "json"]);
        assert_eq!((code, out.as_str()), (1, ""), "{error}");
        assert!(error.contains("may have begun all the same"), "{error}");
    }
    let refused = Peer::says(problem(503, "unavailable", "too much is going on"));
    let (code, _, error) = run(&refused.unix, &["migrate", "vm1", "--to", "h"]);
    assert!(code == 1 && error.contains("too much") && !error.contains("begun"), "{error}");
}
