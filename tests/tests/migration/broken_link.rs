//! Protects a guest that moves from the link between the two hosts: cut, silent, or gone in the very moment in which the guest is handed over.

use std::time::Duration;

use memdex_tests::{
    relay::{Relay, Trap},
    wait,
};
use memdex_wire::transfer::{ToDestination, ToSource};

use crate::stage::{
    CHECK, Moving, Stage,
    judge::{RUNS_AGAIN, Runs},
    moment::{Tail, runs},
    shown,
    watched::Watched,
};

/// A migration takes about so long with [`SLOW`].
const WHOLE: Duration = Duration::from_millis(1600);
const SLOW: [&str; 4] = ["--max-bandwidth", "25M", "--downtime", "300ms"];
/// The guest stands still for at most ten seconds before it is handed over; and a moment until it runs again.
const BLACKOUT: Duration = Duration::from_secs(13);

impl Stage {
    /// A relay to the other host.
    fn relay(&self) -> Relay {
        let port = self.there().port();
        Relay::to(([127, 0, 0, 1], port).into()).expect("a relay")
    }

    fn begin_through(&mut self, relay: &Relay, waiting: &Watched, more: &[&str]) -> Moving {
        self.begin(waiting, &format!("tcp://{}", relay.address()), more)
    }

    fn phase(&self, id: &str) -> String {
        let document = shown(self.here(), id).unwrap_or_default();
        document["phase"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn guest_survives_a_link_that_breaks_at_any_moment() {
    let mut stage = Stage::new("link", &CHECK);
    cut(&mut stage);
    short_silence(&mut stage);
    silence(&mut stage);
}

fn cut(stage: &mut Stage) {
    for run in 0..runs(1) {
        let moment = stage.chance.any_moment(WHOLE);
        eprintln!("cut, run {run}: {moment:?}");
        let (relay, waiting) = (stage.relay(), stage.waiting());
        let mut log = Tail::of(stage.here().log_file());
        let moving = stage.begin_through(&relay, &waiting, &SLOW);
        assert!(moment.wait(&mut log), "it never came to this moment: {}", log.text());
        relay.cut();
        // The link is gone for any while.
        std::thread::sleep(stage.chance.duration(Duration::from_secs(1)));
        relay.mend();
        stage.judge(waiting, &moving.id);
    }
}

/// A link that is silent for a moment does no harm.
fn short_silence(stage: &mut Stage) {
    for run in 0..runs(1) {
        let moment = stage.chance.any_moment(WHOLE);
        eprintln!("silent for a moment, run {run}: {moment:?}");
        let (relay, mut waiting) = (stage.relay(), stage.waiting());
        let mut log = Tail::of(stage.here().log_file());
        let moving = stage.begin_through(&relay, &waiting, &SLOW);
        assert!(moment.wait(&mut log), "it never came to this moment: {}", log.text());
        relay.stall();
        std::thread::sleep(stage.chance.duration(Duration::from_secs(3)));
        relay.mend();
        assert_eq!(stage.ended(&moving.id)[0].as_ref().expect("it is known")["outcome"], "completed");
        assert_eq!(stage.runs(&mut waiting, RUNS_AGAIN), Runs::There);
        stage.judge(waiting, &moving.id);
    }
}

/// A silent link never keeps the guest standing still.
fn silence(stage: &mut Stage) {
    for run in 0..runs(1) {
        let moment = stage.chance.any_moment(WHOLE);
        eprintln!("silent, run {run}: {moment:?}");
        let (relay, mut waiting) = (stage.relay(), stage.waiting());
        let mut log = Tail::of(stage.here().log_file());
        let moving = stage.begin_through(&relay, &waiting, &SLOW);
        assert!(moment.wait(&mut log), "it never came to this moment: {}", log.text());
        relay.stall();
        wait::until("the guest to run, or to be handed over", BLACKOUT, || {
            let ended =
                shown(stage.here(), &moving.id).is_some_and(|document| !document["outcome"].is_null());
            (ended || stage.phase(&moving.id) == "handing_over").then_some(())
        });
        if stage.phase(&moving.id) == "handing_over" {
            eprintln!("  it was being handed over");
            assert!(!(stage.guest.look() && waiting.look()));
        } else {
            stage.runs(&mut waiting, Duration::from_secs(1));
        }
        relay.mend();
        stage.judge(waiting, &moving.id);
    }
}

/// Breaks the link at a message, and has the destination's daemon killed meanwhile or not.
fn breaks_at(stage: &mut Stage, message: Vec<u8>, arrives: bool, cut: bool, kill: bool) -> Runs {
    let (relay, mut waiting) = (stage.relay(), stage.waiting());
    relay.set(Trap { message, arrives, cut });
    let moving = stage.begin_through(&relay, &waiting, &[]);
    wait::until("the message", Duration::from_secs(20), || relay.has_sprung().then_some(()));
    if kill {
        // What it has decided is written down, and it has to be asked when it is back.
        let bound = Duration::from_secs(20);
        wait::until("the destination to notice", bound, || {
            shown(stage.there(), &moving.id).filter(|document| !document["outcome"].is_null())
        });
        let there = 1 - stage.at;
        stage.hosts[there].kill();
        stage.hosts[there].restart(&stage.scratch);
    }
    relay.mend();
    let runs = stage.runs(&mut waiting, Duration::from_secs(30));
    stage.judge(waiting, &moving.id);
    runs
}

#[test]
fn guest_runs_once_wherever_the_hand_over_is_cut() {
    let mut stage = Stage::new("over", &CHECK);
    let hand_over = ToDestination::HandOver { run: true }.encode();
    for message in [
        ToDestination::PrepareDevice.encode(),
        ToSource::DeviceReady.encode(),
        ToDestination::DeviceEnd.encode(),
        ToSource::DeviceLoaded.encode(),
        hand_over.clone(),
    ] {
        eprintln!("cut before {message:?}");
        assert_eq!(breaks_at(&mut stage, message, false, true, false), Runs::Here);
    }
    eprintln!("cut after the hand-over");
    assert_eq!(breaks_at(&mut stage, hand_over, true, true, false), Runs::There);
    eprintln!("cut before the answer to it");
    assert_eq!(breaks_at(&mut stage, ToSource::Running.encode(), false, true, false), Runs::There);
    eprintln!("the same, and the destination's daemon dies before it is asked");
    let hand_over = ToDestination::HandOver { run: true }.encode();
    assert_eq!(breaks_at(&mut stage, hand_over, false, true, true), Runs::Here);
    assert_eq!(breaks_at(&mut stage, ToSource::Running.encode(), false, true, true), Runs::There);
}
