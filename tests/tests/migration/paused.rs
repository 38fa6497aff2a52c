//! Protects the wish of whoever pauses a guest: it stays paused, here or there, whatever becomes of its migration.

use std::time::Duration;

use memdex_tests::http;

use crate::{
    hosts::tcp,
    stage::{
        CHECK, Stage,
        judge::Runs,
        moment::{Moment, Tail},
    },
};

/// Bytes a second: the copying takes more than a second.
const SLOW: [&str; 4] = ["--max-bandwidth", "25M", "--downtime", "300ms"];
const BOUND: Duration = Duration::from_secs(20);
/// Whoever would let it run has done so by then.
const STAYS: Duration = Duration::from_secs(2);

#[test]
fn paused_guest_moves_and_stays_paused() {
    let mut stage = Stage::new("pause", &CHECK);
    let mut waiting = stage.waiting();
    stage.guest.qemu.pause();
    let to = tcp(stage.there());
    let mut moving = stage.begin(&waiting, &to, &[]);
    let (report, code) = moving.end(BOUND);
    assert_eq!((code, &report["outcome"]), (Some(0), &"completed".into()), "{report}");
    std::thread::sleep(STAYS);
    assert_eq!(waiting.qemu.status(), "paused");
    waiting.qemu.resume();
    stage.checks = waiting.qemu.check_ok(stage.checks);
    stage.judge(waiting, &moving.id);
}

/// What happens to the migration of a guest that was paused meanwhile.
#[derive(Debug, Clone, Copy)]
enum Then {
    CalledOff,
    /// Its guard puts the guest back, and a new daemon comes.
    DaemonKilled,
    Completes,
}

/// Also if the migration may stop the guest for moments to slow it down, and has not done so.
#[test]
fn guest_that_somebody_pauses_while_it_moves_stays_paused() {
    let mut stage = Stage::new("paused", &CHECK);
    for then in [Then::CalledOff, Then::DaemonKilled, Then::Completes] {
        eprintln!("{then:?}");
        let mut waiting = stage.waiting();
        let mut log = Tail::of(stage.here().log_file());
        let to = tcp(stage.there());
        let more = [&SLOW[..], &["--on-no-converge", "throttle"]].concat();
        let mut moving = stage.begin(&waiting, &to, &more);
        assert!(Moment::at("copying").wait(&mut log), "{}", log.text());
        stage.guest.qemu.pause();
        match then {
            Then::CalledOff => {
                let path = format!("/v1/migrations/{}/abort", moving.id);
                let answer = http::unix(stage.here().socket(), "POST", &path, &[]).expect("an answer");
                assert_eq!(answer.status, 200, "{answer:?}");
                let _ = moving.end(BOUND);
            }
            Then::DaemonKilled => {
                let at = stage.at;
                stage.hosts[at].kill();
                let _ = moving.command.wait(BOUND);
                stage.hosts[at].restart(&stage.scratch);
            }
            Then::Completes => {
                let (report, code) = moving.end(BOUND);
                assert_eq!((code, &report["outcome"]), (Some(0), &"completed".into()), "{report}");
            }
        }
        std::thread::sleep(STAYS);
        let there = matches!(then, Then::Completes);
        let guest = if there { &mut waiting } else { &mut stage.guest };
        assert_eq!(guest.qemu.status(), "paused", "{then:?}");
        guest.qemu.resume();
        let runs = stage.runs(&mut waiting, BOUND);
        assert_eq!(runs, if there { Runs::There } else { Runs::Here }, "{then:?}");
        stage.judge(waiting, &moving.id);
    }
}
