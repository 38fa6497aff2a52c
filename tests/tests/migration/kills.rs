//! Protects a guest that moves from the sudden death of anything that takes part: both daemons, both QEMUs, and the command.

use std::time::Duration;

use crate::{
    hosts::tcp,
    stage::{
        CHECK, Moving, Stage,
        judge::{RUNS_AGAIN, Runs},
        moment::{Moment, Tail, runs},
        watched::Watched,
    },
};

/// Runs of each kind.
const FEW: usize = 4;
/// A migration takes about so long with [`SLOW`].
const WHOLE: Duration = Duration::from_millis(1600);
/// Bytes a second.
const SLOW: &str = "25M";

/// Begins a migration and waits for a moment of it; returns what moved and where to.
fn until_a_moment(stage: &mut Stage, run: usize) -> (Moving, Watched, Moment) {
    let moment = stage.chance.moment(run, WHOLE);
    let waiting = stage.waiting();
    let mut log = Tail::of(stage.here().log_file());
    let to = tcp(stage.there());
    let moving = stage.begin(&waiting, &to, &["--max-bandwidth", SLOW, "--downtime", "300ms"]);
    eprintln!("run {run}: {moment:?}");
    moment.wait(&mut log);
    (moving, waiting, moment)
}

#[test]
fn guest_survives_the_death_of_the_source_daemon() {
    let mut stage = Stage::new("ksrc", &CHECK);
    for run in 0..runs(FEW) {
        let (moving, mut waiting, _) = until_a_moment(&mut stage, run);
        let at = stage.at;
        stage.hosts[at].kill();
        // Nobody has started it again: the guard sees to the guest.
        stage.runs(&mut waiting, RUNS_AGAIN);
        let scratch = &stage.scratch;
        stage.hosts[at].restart(scratch);
        stage.judge(waiting, &moving.id);
    }
}

#[test]
fn guest_survives_the_death_of_the_destination_daemon() {
    let mut stage = Stage::new("kdst", &CHECK);
    for run in 0..runs(FEW) {
        let (moving, waiting, _) = until_a_moment(&mut stage, run);
        let there = 1 - stage.at;
        stage.hosts[there].kill();
        let scratch = &stage.scratch;
        stage.hosts[there].restart(scratch);
        stage.judge(waiting, &moving.id);
    }
}

#[test]
fn migration_goes_on_without_the_command() {
    let mut stage = Stage::new("kcmd", &CHECK);
    for run in 0..runs(FEW) {
        let (mut moving, mut waiting, _) = until_a_moment(&mut stage, run);
        moving.command.kill();
        let documents = stage.ended(&moving.id);
        assert_eq!(documents[0].as_ref().expect("the source knows it")["outcome"], "completed");
        assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::There);
        stage.judge(waiting, &moving.id);
    }
}

#[test]
fn death_of_the_source_vmm_never_leaves_two_guests_or_half_of_one() {
    let mut stage = Stage::new("kqsr", &CHECK);
    for run in 0..runs(FEW) {
        let (moving, mut waiting, _) = until_a_moment(&mut stage, run);
        stage.guest.kill();
        let documents = stage.ended(&moving.id);
        eprintln!("  {documents:?}");
        let completed = documents[1].as_ref().is_some_and(|document| document["outcome"] == "completed");
        if completed {
            assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::There);
            stage.judge(waiting, &moving.id);
            continue;
        }
        // It was killed before it was handed over: it is gone, and nothing half of it may run.
        stage.tidy();
        assert!(!waiting.has_run(), "the destination runs what it has not been given");
        if !waiting.is_gone() {
            assert_eq!(waiting.qemu.status(), "inmigrate");
        }
        drop(waiting);
        stage.boot_again();
    }
}

#[test]
fn guest_survives_the_death_of_the_destination_vmm() {
    let mut stage = Stage::new("kqds", &CHECK);
    for run in 0..runs(FEW) {
        let (moving, mut waiting, _) = until_a_moment(&mut stage, run);
        waiting.kill();
        let documents = stage.ended(&moving.id);
        if documents[1].as_ref().is_some_and(|document| document["outcome"] == "completed") {
            // It ran there when it was killed.
            stage.tidy();
            assert!(!stage.guest.look(), "the guest ran at the destination already");
            stage.boot_again();
            continue;
        }
        assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::Here, "{:?}", stage.ended(&moving.id));
        stage.judge(waiting, &moving.id);
    }
}
