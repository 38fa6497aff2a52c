//! Protects a running guest from a destination that lies: whatever it says, the migration ends with a clear sentence and the guest runs on at the source.

use std::time::{Duration, Instant};

use memdex_tests::wait;
use memdex_wire::transfer::{Ready, ToDestination, ToSource};

use crate::{
    liar::{Liar, Line},
    stage::{CHECK, Stage},
};

/// Longest lie: a destination that lives and does nothing is given up after forty seconds.
const BOUND: Duration = Duration::from_secs(60);

fn ready(line: &mut Line) {
    let Ok(ToDestination::Hello(_)) = line.hear_source() else { return };
    let ready =
        Ready { vm: "vm-1-1".to_owned(), qemu: "10.0.2".to_owned(), names: [5; 32], checks: Vec::new() };
    line.send(&ToSource::Ready(ready).encode());
}

/// Reads until the source has gone.
fn listen(line: &mut Line) {
    while line.hear_source().is_ok() {}
}

/// Takes forty seconds: by itself, beside the others.
const SLOW: &str = "lives, and does nothing";
/// A name, what it does once it has said that it is ready, and what has to be said about it.
type Told = (&'static str, fn(&mut Line), &'static str);

const LIES: [Told; 11] = [
    (
        "asks for what was not offered",
        |line| line.send(&ToSource::Need { batch: 77, positions: vec![0] }.encode()),
        "not offered",
    ),
    (
        "asks for pages beyond an offer",
        |line| {
            if let Ok(ToDestination::Offer { batch, .. }) = line.hear_source() {
                line.send(&ToSource::Need { batch, positions: vec![u16::MAX] }.encode());
            }
        },
        "more than was offered",
    ),
    (
        "asks again and again",
        |line| {
            if let Ok(ToDestination::Offer { batch, .. }) = line.hear_source() {
                for _ in 0..5000 {
                    line.send(&ToSource::Need { batch, positions: vec![0; 64] }.encode());
                }
            }
        },
        "more than was offered",
    ),
    (
        "confirms what was not offered",
        |line| line.send(&ToSource::Done { batch: 77 }.encode()),
        "not offered",
    ),
    (
        "has everything, and another digest",
        |line| {
            while let Ok(said) = line.hear_source() {
                match said {
                    ToDestination::Offer { batch, .. } => line.send(&ToSource::Done { batch }.encode()),
                    ToDestination::PrepareDevice => line.send(&ToSource::DeviceReady.encode()),
                    ToDestination::Digest(_) => line.send(&ToSource::Digest([3; 32]).encode()),
                    _ => {}
                }
            }
        },
        "digests differ",
    ),
    ("sends an endless frame", |line| line.send(&[255, 255, 255, 255, 67]), "at most"),
    ("sends what is no frame", |line| line.send(&[1, 0, 0, 0, 200, 1]), "does not speak this protocol"),
    ("says that the guest runs there", |line| line.send(&ToSource::Running.encode()), "out of turn"),
    (
        "says that the guest runs there while it stands still",
        |line| {
            while let Ok(said) = line.hear_source() {
                match said {
                    ToDestination::Offer { batch, .. } => line.send(&ToSource::Done { batch }.encode()),
                    ToDestination::PrepareDevice => line.send(&ToSource::DeviceReady.encode()),
                    ToDestination::Digest(_) => line.send(&ToSource::Running.encode()),
                    _ => {}
                }
            }
        },
        "out of turn",
    ),
    (
        "never says a word",
        |line| {
            let mut bytes = [0; 65536];
            while std::io::Read::read(&mut line.0, &mut bytes).is_ok_and(|len| len > 0) {}
        },
        "silent",
    ),
    ("lives, and does nothing", listen, "has done nothing"),
];

#[test]
fn guest_stays_where_it_is_whatever_the_destination_says() {
    stays("lies", |name| name != SLOW);
}

#[test]
fn guest_stays_where_it_is_if_the_destination_does_nothing() {
    stays("idle", |name| name == SLOW);
}

fn stays(stage: &str, which: fn(&str) -> bool) {
    let mut stage = Stage::new(stage, &CHECK);
    // A name that the source may ask for; there is no such VM.
    let waiting = stage.waiting();
    for (name, lie, words) in LIES.into_iter().filter(|lie| which(lie.0)) {
        let begun = Instant::now();
        let liar = Liar::new(move |mut line| {
            ready(&mut line);
            lie(&mut line);
            listen(&mut line);
        });
        let mut moving = stage.begin(&waiting, &liar.url(), &[]);
        let (report, code) = moving.end(BOUND);
        let reason = report["reason"].as_str().unwrap_or_default();
        eprintln!("{name}: {reason} ({:?})", begun.elapsed());
        assert!(report["outcome"] == "failed" && code == Some(1), "{name}: {report}");
        assert!(reason.contains(words), "{name}: {reason}");
        wait::until("the guest to run", Duration::from_secs(1), || stage.guest.look().then_some(()));
        stage.guest.is_left_alone();
        stage.tidy();
    }
    stage.checks = stage.guest.qemu.check_ok(stage.checks);
    stage.move_on();
}
