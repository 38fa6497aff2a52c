//! A guest moves to the other host and back while it runs. What is shown as true is by the word of the guest and of QEMU.

use std::time::{Duration, Instant};

use memdex_tests::qemu::Checks;
use serde::Deserialize;

use crate::{
    figures::{count, percent, size, time},
    guest::Guest,
    hosts::{Host, World},
    stage::{Failure, Stage},
    summary::Summary,
};

/// How long a guest may take to look through its memory three times: once takes a second, on a core of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the old QEMU may take to end.
const END: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// What a daemon says of a migration that has ended, from `GET /v1/migrations`.
#[derive(Debug, Deserialize)]
struct Migration {
    dest_vm: String,
    total_ms: u64,
    blackout_ms: f64,
    bytes: Bytes,
}

#[derive(Debug, Deserialize)]
struct Bytes {
    matched: u64,
    sent: u64,
    wire: u64,
}

impl Bytes {
    /// What would have been sent without memdex: every page that is not zero, in every round.
    const fn plain(&self) -> u64 {
        self.matched + self.sent
    }
}

/// From where to where: indices of hosts, and what the figures of this move are called.
struct Way {
    from: usize,
    to: usize,
    figures: &'static str,
    plan: bool,
}

pub(super) fn play(world: &mut World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("A VM moves, live")?;
    let [north, south] = [world.hosts[0].name, world.hosts[1].name];
    let guest = world.hosts[0].guests[0].name;
    stage.say(&format!(
        "{guest} moves from {north} to {south} while it runs. On {south} a QEMU of the same machine waits, its memory empty \
         (as both hosts are this machine, the VM there has a name of its own). Since {guest} booted, a program in it has \
         kept writing memory and checking that it holds what was written: one page wrong, old or lost, and it says so. \
         First, what would it take?",
    ));
    let there = travel(world, stage, summary, &Way { from: 0, to: 1, figures: "move", plan: true })?;
    stage.line("");
    stage.say(&format!(
        "And back again. {north} has kept what {guest} left behind there: only what was written since is new.",
    ));
    let back = travel(world, stage, summary, &Way { from: 1, to: 0, figures: "move_back", plan: false })?;
    let [first, second] = [there.bytes.wire, back.bytes.wire];
    let text = format!("the way back took {} on the wire, the way there {}", size(second), size(first));
    summary.check(stage, "way_back_is_cheaper", second < first, &text);
    Ok(())
}

/// The first guest of a host moves to another host, and becomes the first one there.
fn travel(
    world: &mut World,
    stage: &mut Stage,
    summary: &mut Summary,
    way: &Way,
) -> Result<Migration, Failure> {
    let [source, destination] = [&world.hosts[way.from], &world.hosts[way.to]];
    let guest = &source.guests[0];
    let mut waiting = world.start_waiting(stage, guest, way.to)?;
    let to = destination.daemon().tcp_url();
    let mut words = vec!["migrate", &guest.vm, "--to", &to, "--dest-vm", &waiting.vm];
    if way.plan {
        words.push("--dry-run");
        source.show(stage, &words)?;
        words.pop();
        stage.say("Now it moves:");
    }
    let before = guest.qemu.checks().unwrap_or_default();
    source.show(stage, &words)?;
    let migration = of(source, &waiting.vm)?;

    let mut left = world.hosts[way.from].guests.remove(0);
    let [source, destination] = [&world.hosts[way.from], &world.hosts[way.to]];
    runs_there(source, &mut left, destination, &mut waiting, stage, summary)?;
    memory_is_right(&mut waiting, before, stage, summary)?;
    costs_less(&migration, &waiting, way, stage, summary);
    waiting.booted = left.booted;
    drop(left);
    world.hosts[way.to].guests.insert(0, waiting);
    Ok(migration)
}

/// By the word of both QEMUs, and of both daemons.
fn runs_there(
    source: &Host,
    left: &mut Guest,
    destination: &Host,
    arrived: &mut Guest,
    stage: &mut Stage,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut gone = false;
    while !gone && begun.elapsed() < END {
        gone = !left.qemu.is_running() && source.vm(left).is_err();
        stage.pause(LOOK)?;
    }
    let status = if arrived.qemu.is_running() { arrived.qemu.status() } else { "ended".to_owned() };
    let passed = gone && status == "running" && destination.vm(arrived).is_ok();
    let text = format!(
        "{} on {}: QEMU says `{status}`; on {}: its QEMU {}",
        arrived.name,
        destination.name,
        source.name,
        if gone { "has ended" } else { "is still there" },
    );
    summary.check(stage, "runs_there_only", passed, &text);
    Ok(())
}

/// By the word of the guest, once it has compared all that it checks since it arrived.
fn memory_is_right(
    guest: &mut Guest,
    before: Checks,
    stage: &mut Stage,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut first = None;
    let (passed, said) = loop {
        let checks = guest.qemu.checks();
        first = first.or(checks);
        if let Some(bad) = guest.qemu.bad_check() {
            break (false, format!("says of its own memory: {bad}"));
        }
        if let (Some(first), Some(last)) = (first, checks)
            && last.sweeps >= first.sweeps + 2
        {
            let went_on = first.pages > before.pages && first.writes >= before.writes;
            let since = count(last.pages.saturating_sub(before.pages));
            break (went_on, format!("says of its own memory: ok, {since} pages compared since it set out"));
        }
        if !guest.qemu.is_running() || begun.elapsed() > PATIENCE {
            break (false, "says nothing any more of its own memory".to_owned());
        }
        stage.pause(LOOK)?;
    };
    summary.check(stage, "memory_is_right", passed, &format!("{} {said}", guest.name));
    Ok(())
}

/// Bytes on the wire beside those of a plain copy.
fn costs_less(migration: &Migration, guest: &Guest, way: &Way, stage: &mut Stage, summary: &mut Summary) {
    let Migration { bytes, total_ms, blackout_ms, .. } = migration;
    let (wire, plain) = (bytes.wire, bytes.plain());
    let text = format!(
        "{} on the wire, answers included; a plain copy sends all that is not zero, {}: {} of that",
        size(wire),
        size(plain),
        percent(wire, plain),
    );
    summary.check(stage, "less_than_a_plain_copy", wire < plain, &text);
    stage.line(&format!(
        "  {} stood still for {} (blackout) of the {} that it took",
        guest.name,
        time(Duration::from_secs_f64(blackout_ms.max(0.0) / 1e3)),
        time(Duration::from_millis(*total_ms)),
    ));
    let mut figure = |name: &str, value: serde_json::Value, unit: &str| {
        summary.figure(guest.name, &format!("{}_{name}", way.figures), value, unit);
    };
    figure("wire", wire.into(), "bytes");
    figure("plain", plain.into(), "bytes");
    figure("blackout", (*blackout_ms).into(), "ms");
    figure("total", (*total_ms).into(), "ms");
}

/// The migration of a host to a VM that waited.
fn of(host: &Host, dest_vm: &str) -> Result<Migration, Failure> {
    let answer = host.daemon().get("/v1/migrations");
    let all: Vec<Migration> = serde_json::from_slice(&answer.body).map_err(|error| {
        Failure::Failed(format!("{} gives no list of its migrations: {error}", host.name))
    })?;
    let migration = all.into_iter().find(|migration| migration.dest_vm == dest_vm);
    migration
        .ok_or_else(|| Failure::Failed(format!("{} does not show the migration to {dest_vm}", host.name)))
}
