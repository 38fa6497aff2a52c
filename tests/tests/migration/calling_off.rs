//! Protects who changes their mind: a migration can be called off at any time before the guest is handed over, by Ctrl-C or by its id, and the guest
//! goes on at the source as if nothing had been.

use std::time::{Duration, Instant};

use memdex_tests::{http, relay::Relay, wait};
use rustix::process::Signal;

use crate::{
    hosts::tcp,
    stage::{
        CHECK, Moving, Stage,
        judge::{RUNS_AGAIN, Runs},
        moment::{Moment, PHASES, Tail, runs},
    },
};

const SLOW: [&str; 4] = ["--max-bandwidth", "25M", "--downtime", "300ms"];
/// Longest time from the wish to the end.
const BOUND: Duration = Duration::from_secs(20);

/// How somebody calls a migration off.
#[derive(Debug, Clone, Copy)]
enum Way {
    CtrlC,
    Command,
    Http,
}

const WAYS: [Way; 3] = [Way::CtrlC, Way::Command, Way::Http];

impl Way {
    /// Whether the wish was taken; nothing if nobody says.
    fn call_off(self, stage: &Stage, moving: &mut Moving) -> Option<bool> {
        match self {
            Self::CtrlC => {
                moving.command.signal(Signal::INT);
                None
            }
            Self::Command => {
                let output = stage.here().memdex(&["abort", &moving.id]);
                match output.status.code() {
                    Some(0) => Some(true),
                    // Too late, or it had ended meanwhile.
                    Some(1 | 5) => Some(false),
                    _ => panic!("{output:?}"),
                }
            }
            Self::Http => {
                let path = format!("/v1/migrations/{}/abort", moving.id);
                let answer = http::unix(stage.here().socket(), "POST", &path, &[]).expect("an answer");
                assert!(matches!(answer.status, 200 | 409), "{answer:?}");
                None
            }
        }
    }
}

#[test]
fn migration_can_be_called_off_in_every_phase() {
    let mut stage = Stage::new("off", &CHECK);
    let first = stage.chance.below(PHASES.len() as u64) as usize;
    for run in 0..runs(4) {
        // Four of them are spread over all.
        let phase = PHASES[(first + run * 2) % PHASES.len()];
        let way = WAYS[(first + run + run / PHASES.len()) % WAYS.len()];
        eprintln!("run {run}: {way:?} at {phase}");
        let mut waiting = stage.waiting();
        let mut log = Tail::of(stage.here().log_file());
        let to = tcp(stage.there());
        let mut moving = stage.begin(&waiting, &to, &SLOW);
        let late = Moment::at(phase).wait(&mut log);
        assert!(late, "the phase {phase} was not seen");
        let taken = way.call_off(&stage, &mut moving);
        let (report, code) = moving.end(BOUND);
        let runs = stage.runs(&mut waiting, RUNS_AGAIN);
        let aborted = report["outcome"] == "aborted";
        assert!(aborted || report["outcome"] == "completed", "{report}");
        assert_eq!(aborted, runs == Runs::Here, "{report}");
        assert!(taken.is_none_or(|taken| taken == aborted), "{report}");
        match way {
            Way::CtrlC => assert!(code == Some(130) || !aborted, "{code:?}"),
            Way::Command | Way::Http => assert_eq!(code, Some(i32::from(aborted)), "{report}"),
        }
        if ["checking", "connecting", "copying"].contains(&phase) {
            assert!(aborted, "it was early enough: {report}");
        }
        stage.judge(waiting, &moving.id);
    }
}

#[test]
fn guest_that_stands_still_runs_at_once_when_it_is_called_off_on_a_silent_link() {
    let mut stage = Stage::new("offs", &CHECK);
    let relay = Relay::to(([127, 0, 0, 1], stage.there().port()).into()).expect("a relay");
    let mut waiting = stage.waiting();
    let mut log = Tail::of(stage.here().log_file());
    let moving = stage.begin(&waiting, &format!("tcp://{}", relay.address()), &SLOW);
    assert!(Moment::at("stopping").wait(&mut log));
    relay.stall();
    wait::until("the guest to stand still", BOUND, || (!stage.guest.look()).then_some(()));
    let path = format!("/v1/migrations/{}/abort", moving.id);
    let answer = http::unix(stage.here().socket(), "POST", &path, &[]).expect("an answer");
    if answer.status == 200 {
        let begun = Instant::now();
        assert_eq!(stage.runs(&mut waiting, Duration::from_secs(5)), Runs::Here);
        eprintln!("it ran after {:?}", begun.elapsed());
        relay.mend();
        assert_eq!(stage.ended(&moving.id)[0].as_ref().expect("it is known")["outcome"], "aborted");
    }
    relay.mend();
    stage.judge(waiting, &moving.id);
}
