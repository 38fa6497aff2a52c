//! Protects a guest that moves from the sudden death of anything that takes part: both daemons, both QEMUs, and the command. It runs once afterwards,
//! or has died with the QEMU it was in; half a guest never runs.

use std::time::Duration;

use memdex_tests::wait;

use crate::{
    hosts::tcp,
    stage::{
        self, CHECK, Moving, Stage,
        judge::{RUNS_AGAIN, Runs, discarded},
        moment::{Moment, Tail, runs},
        watched::Watched,
    },
};

/// A migration takes about so long with [`SLOW`].
const WHOLE: Duration = Duration::from_millis(1600);
/// Bytes a second.
const SLOW: &str = "25M";

/// What dies, and what has to hold then.
type Kind = (&'static str, fn(&mut Stage, &mut Moving, Watched));

const KINDS: [Kind; 8] = [
    ("the source's daemon", source_daemon),
    ("the destination's daemon", destination_daemon),
    ("both daemons", both_daemons),
    ("the command", command),
    ("the source's QEMU", source_vmm),
    ("the destination's QEMU", destination_vmm),
    ("the source's daemon, in an orderly way", source_daemon_stops),
    ("the destination's daemon, in an orderly way", destination_daemon_stops),
];

/// Each kind, as often as `MEMDEX_FAULT_RUNS` says; only those with `MEMDEX_FAULT_KIND` in their name, if that is set.
#[test]
fn guest_runs_once_whatever_dies_while_it_moves() {
    let wanted = std::env::var("MEMDEX_FAULT_KIND").unwrap_or_default();
    let mut stage = Stage::new("kill", &CHECK);
    for (name, kill) in KINDS.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        for run in 0..runs(1) {
            let moment = stage.chance.any_moment(WHOLE);
            eprintln!("{name}, run {run}: {moment:?}");
            let waiting = stage.waiting();
            let mut log = Tail::of(stage.here().log_file());
            let to = tcp(stage.there());
            let mut moving = stage.begin(&waiting, &to, &["--max-bandwidth", SLOW, "--downtime", "300ms"]);
            assert!(moment.wait(&mut log), "it never came to this moment: {}", log.text());
            kill(&mut stage, &mut moving, waiting);
        }
    }
}

/// A VM that ends before its daemon has read it once: the migration has nothing more to wait for. Reading takes a tenth of a second, so the moment may be missed: that is
/// a fault like any other then, and there is another try.
#[test]
fn guest_that_dies_before_it_was_read_ends_its_migration() {
    let mut stage = Stage::new("unread", &CHECK);
    let (mut unread, mut tries) = (0, 0);
    while unread < runs(2) {
        tries += 1;
        assert!(tries <= 5 * runs(2), "it had been read in nearly every try");
        let waiting = stage.waiting();
        let to = tcp(stage.there());
        let at = stage.at;
        stage.hosts[at].stop();
        let maps = format!("{}.maps", stage.here().socket().display());
        std::fs::remove_dir_all(maps).expect("what was known of the guest");
        // Pages that the guest writes while it is read for the first time have to wait long for their turn.
        std::fs::write(stage.scratch.path("config.toml"), "guest_budget = 0.01\n[migration]\nkeep_mib = 0\n")
            .expect("another configuration");
        stage.hosts[at].restart(&stage.scratch);
        let tracked = || stage.here().vm_of(stage.guest.qemu.pid()).filter(|vm| vm.tracking == "exact");
        wait::until("the guest to be tracked", Duration::from_secs(10), tracked);
        let mut log = Tail::of(stage.here().log_file());
        let mut moving = stage.begin(&waiting, &to, &["--max-bandwidth", SLOW]);
        assert!(Moment::at("copying").wait(&mut log), "it is under way");
        let indexed = stage.here().get("/v1/vms").json()[0]["indexed"].clone();
        eprintln!("when it is killed: {indexed}");
        unread += usize::from(indexed["done"].as_u64() < indexed["total"].as_u64());
        source_vmm(&mut stage, &mut moving, waiting);
    }
}

/// A daemon that was killed while it received left memory in a VM, and gives it back when it is there again; but not if that VM was given a guest meanwhile in some other way.
#[test]
fn guest_that_came_in_another_way_keeps_its_memory() {
    use std::os::unix::fs::DirBuilderExt;
    let mut stage = Stage::new("other-way", &CHECK);
    let at = stage.at;
    let pid = stage.guest.qemu.pid();
    let id = stage.here().vm_of(pid).expect("it is watched").id;
    let start_time: u64 = id.rsplit('-').next().and_then(|time| time.parse().ok()).expect("vm-PID-START");
    stage.hosts[at].kill();
    let journal = stage::judge::journal(stage.here());
    let _ = std::fs::DirBuilder::new().mode(0o700).create(&journal);
    let entry = serde_json::json!({
        "id": "0123456789abcdef", "name": stage.guest.name, "process": [pid, start_time],
        "monitor": stage.guest.qemu.memdex_monitor(), "decision": "receiving", "run": true,
    });
    std::fs::write(journal.join("0123456789abcdef"), entry.to_string()).expect("an entry of the journal");
    stage.hosts[at].restart(&stage.scratch);
    stage.tidy();
    stage.checks = stage.guest.qemu.check_ok(stage.checks);
    stage.move_on();
    stage.checks = stage.guest.qemu.check_ok(stage.checks);
}

fn source_daemon(stage: &mut Stage, moving: &mut Moving, mut waiting: Watched) {
    let at = stage.at;
    stage.hosts[at].kill();
    // Nobody has started it again: the guard sees to the guest.
    stage.runs(&mut waiting, RUNS_AGAIN);
    stage.hosts[at].restart(&stage.scratch);
    stage.judge(waiting, &moving.id);
}

fn destination_daemon(stage: &mut Stage, moving: &mut Moving, waiting: Watched) {
    let there = 1 - stage.at;
    stage.hosts[there].kill();
    stage.hosts[there].restart(&stage.scratch);
    stage.judge(waiting, &moving.id);
}

fn both_daemons(stage: &mut Stage, moving: &mut Moving, waiting: Watched) {
    let first = stage.chance.below(2) as usize;
    stage.hosts[first].kill();
    stage.hosts[1 - first].kill();
    stage.hosts[first].restart(&stage.scratch);
    stage.hosts[1 - first].restart(&stage.scratch);
    stage.judge(waiting, &moving.id);
}

fn source_daemon_stops(stage: &mut Stage, moving: &mut Moving, mut waiting: Watched) {
    let at = stage.at;
    stage.hosts[at].stop();
    stage.runs(&mut waiting, RUNS_AGAIN);
    stage.hosts[at].restart(&stage.scratch);
    stage.judge(waiting, &moving.id);
}

fn destination_daemon_stops(stage: &mut Stage, moving: &mut Moving, waiting: Watched) {
    let there = 1 - stage.at;
    stage.hosts[there].stop();
    stage.hosts[there].restart(&stage.scratch);
    stage.judge(waiting, &moving.id);
}

/// Whoever began it may go away.
fn command(stage: &mut Stage, moving: &mut Moving, mut waiting: Watched) {
    moving.command.kill();
    let document = stage.ended(&moving.id)[0].clone().expect("the source knows it");
    assert_eq!(document["outcome"], "completed", "{document}");
    assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::There);
    stage.judge(waiting, &moving.id);
}

fn source_vmm(stage: &mut Stage, moving: &mut Moving, mut waiting: Watched) {
    stage.guest.kill();
    let documents = stage.ended(&moving.id);
    if documents[1].as_ref().is_some_and(|document| document["outcome"] == "completed") {
        assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::There);
        return stage.judge(waiting, &moving.id);
    }
    // It was killed before it was handed over: it is gone, and nothing half of it may run.
    stage.tidy();
    assert!(!waiting.has_run(), "the destination runs what it has not been given");
    discarded(&mut waiting);
    drop(waiting);
    stage.boot_again();
}

fn destination_vmm(stage: &mut Stage, moving: &mut Moving, mut waiting: Watched) {
    waiting.kill();
    let documents = stage.ended(&moving.id);
    if documents[1].as_ref().is_some_and(|document| document["outcome"] == "completed") {
        // It ran there when it was killed.
        stage.tidy();
        assert!(!stage.guest.look(), "the guest ran at the destination already");
        return stage.boot_again();
    }
    assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::Here, "{documents:?}");
    stage.judge(waiting, &moving.id);
}
