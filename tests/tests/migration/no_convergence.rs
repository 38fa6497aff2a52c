//! Protects what was promised for a guest that writes faster than the link takes: abort says so in figures, a throttle is always taken back, stop ends it.

use std::time::Duration;

use memdex_tests::{image::Check, wait};
use serde_json::Value;

use crate::{
    hosts::tcp,
    stage::{
        Moving, Stage,
        judge::{RUNS_AGAIN, Runs},
        shown,
        watched::Watched,
    },
};

/// It writes as fast as it can.
const FAST: Check = Check { mib: 24, rate: 0, hot: 4 };
const SLOW: &str = "20M";
/// Longest time until it is known not to converge, with all throttles tried.
const BOUND: Duration = Duration::from_secs(90);

fn begin(stage: &mut Stage, what: &str, downtime: &str) -> (Moving, Watched) {
    let waiting = stage.waiting();
    let to = tcp(stage.there());
    let more = ["--max-bandwidth", SLOW, "--on-no-converge", what, "--downtime", downtime];
    (stage.begin(&waiting, &to, &more), waiting)
}

fn document(stage: &Stage, id: &str) -> Value {
    shown(stage.here(), id).expect("the source knows it")
}

/// Waits until the guest is slowed down.
fn throttled(stage: &mut Stage, id: &str) {
    let (percent, took) = wait::until("the guest to be slowed down", BOUND, || {
        stage.guest.look();
        let document = document(stage, id);
        assert!(document["outcome"].is_null(), "{document}");
        document["progress"]["throttle_percent"].as_u64().filter(|percent| *percent > 0)
    });
    eprintln!("slowed down by {percent} % after {took:?}");
}

#[test]
fn migration_that_does_not_converge_does_what_it_was_told_and_throttles_nobody_for_good() {
    let mut stage = Stage::new("conv", &FAST);
    abort(&mut stage);
    stop(&mut stage);
    throttle(&mut stage);
    for kill in [false, true] {
        throttle_is_taken_back(&mut stage, kill);
    }
}

fn abort(stage: &mut Stage) {
    let (mut moving, waiting) = begin(stage, "abort", "20ms");
    let (report, code) = moving.end(BOUND);
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(report["outcome"] == "aborted" && code == Some(1), "{report}");
    for figure in ["does not converge", "pages a second", "MB a second", "pages are left", "--on-no-converge"]
    {
        assert!(reason.contains(figure), "{reason}");
    }
    stage.judge(waiting, &moving.id);
    stage.guest.is_left_alone();
}

fn stop(stage: &mut Stage) {
    let (mut moving, mut waiting) = begin(stage, "stop", "20ms");
    let (report, code) = moving.end(BOUND);
    assert!(report["outcome"] == "completed" && code == Some(0), "{report}");
    let log = document(stage, &moving.id)["log"].to_string();
    assert!(log.contains("does not converge"), "{log}");
    assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::There);
    stage.judge(waiting, &moving.id);
}

/// At full speed what is left takes two to three times as long as the guest may stand still here, also on a slow machine.
fn throttle(stage: &mut Stage) {
    let (moving, mut waiting) = begin(stage, "throttle", "200ms");
    throttled(stage, &moving.id);
    let (report, _) = wait::until("its end", BOUND, || {
        // A guest that is throttled has much to say.
        stage.guest.look();
        waiting.look();
        Some(document(stage, &moving.id)).filter(|document| !document["outcome"].is_null())
    });
    // Whether it was enough depends on the machine; that it is taken back does not.
    let runs = stage.runs(&mut waiting, RUNS_AGAIN);
    assert_eq!(report["outcome"] == "completed", runs == Runs::There, "{report}");
    assert!(report["log"].to_string().contains("slowed down by"), "{report}");
    if runs == Runs::Here {
        stage.guest.is_left_alone();
    } else {
        waiting.is_left_alone();
    }
    stage.judge(waiting, &moving.id);
}

/// Also when the migration is called off meanwhile, or the source's daemon dies.
fn throttle_is_taken_back(stage: &mut Stage, kill: bool) {
    let (moving, mut waiting) = begin(stage, "throttle", "1ms");
    throttled(stage, &moving.id);
    let at = stage.at;
    if kill {
        stage.hosts[at].kill();
        wait::until("the guards to be done", RUNS_AGAIN, || {
            stage.scratch.processes_with("guard").is_empty().then_some(())
        });
    } else {
        let _ = stage.here().succeed(&["abort", &moving.id]);
    }
    assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::Here);
    stage.guest.is_left_alone();
    if kill {
        stage.hosts[at].restart(&stage.scratch);
    }
    stage.judge(waiting, &moving.id);
}
