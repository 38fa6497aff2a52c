//! What a move would cost, both ways.

use std::time::Duration;

use memdex_tests::{
    Daemon,
    contract::{Diff, DiffCounts},
};

use crate::{
    figures::{percent, size, time},
    guest::Guest,
    hosts::{Host, World},
    picture::{Kind, bar},
    stage::{Failure, Stage},
    summary::Summary,
};

const BAR: u64 = 40;

pub(super) fn play(world: &World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("What would it take to move a VM?")?;
    stage.say("While the guests go on writing, each host is asked what the other one lacks of its VMs.");
    let [north, south] = &world.hosts;
    let to_south = south.daemon().tcp_url();
    north.show(stage, &["diff", north.guests[0].name, "--to", &to_south])?;
    stage.say("The same for every VM, and the other way too:");
    stage.line("");
    let mut all = Needs::default();
    for (from, to) in [(north, south), (south, north)] {
        for guest in &from.guests {
            stage.check()?;
            let diff = ask(from, guest, to.daemon())?;
            let needs = Needs::of(&diff.bytes);
            let elapsed = time(Duration::from_micros(diff.elapsed_us));
            let name = format!("{} to {}", guest.name, to.name);
            let bar = bar(stage, &needs.parts(), BAR);
            stage.line(&format!("{name:<14} {bar}  {needs}, known in {elapsed}"));
            note(summary, guest, &diff);
            all.add(&needs);
        }
    }
    stage.line("");
    stage.line(&format!("all VMs: {:>9}   memory", size(all.whole)));
    stage.line(&format!(
        "         {:>9}   is not zero: what a live migration has to send today, at least",
        size(all.today())
    ));
    stage.line(&format!(
        "         {:>9}   is new on the other side: {} of the memory, {} of what is not zero",
        size(all.new),
        percent(all.new, all.whole),
        percent(all.new, all.today()),
    ));
    stage.line("");
    stage.say(
        "Only what is new has to be sent, before any compression. And it is known before anything moves, so an operator \
         can ask for any VM and any host which move would be cheap.",
    );
    Ok(())
}

/// The diff of a guest against another host.
pub(super) fn ask(from: &Host, guest: &Guest, to: &Daemon) -> Result<Diff, Failure> {
    let id = from.vm(guest)?.id;
    Ok(from.daemon().diff(&id, &to.tcp_url()))
}

/// What a move needs, in bytes.
#[derive(Default)]
struct Needs {
    whole: u64,
    /// To send; what is stale counts as new.
    new: u64,
    there: u64,
    zero: u64,
}

impl Needs {
    const fn of(bytes: &DiffCounts) -> Self {
        Self { whole: bytes.total, new: bytes.missing + bytes.stale, there: bytes.matched, zero: bytes.zero }
    }

    const fn add(&mut self, other: &Self) {
        self.whole += other.whole;
        self.new += other.new;
        self.there += other.there;
        self.zero += other.zero;
    }

    /// What is sent without memdex.
    const fn today(&self) -> u64 {
        self.whole - self.zero
    }

    const fn parts(&self) -> [(Kind, u64); 3] {
        [(Kind::Own, self.new), (Kind::Shared, self.there), (Kind::Zero, self.zero)]
    }
}

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} new, {} there, {} zero", size(self.new), size(self.there), size(self.zero))
    }
}

fn note(summary: &mut Summary, guest: &Guest, diff: &Diff) {
    let DiffCounts { total, zero, matched, missing, stale } = diff.bytes;
    for (name, value) in
        [("total", total), ("zero", zero), ("matched", matched), ("missing", missing), ("stale", stale)]
    {
        summary.figure(guest.name, &format!("diff_{name}"), value, "bytes");
    }
    summary.figure(guest.name, "diff_elapsed", diff.elapsed_us, "us");
}
