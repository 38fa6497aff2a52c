//! What a move would cost, both ways.

use memdex_tests::{
    Daemon,
    contract::{Diff, DiffCounts},
};

use crate::{
    figures::{mib, percent, time},
    hosts::{Guest, Host, World},
    picture::{Kind, bar},
    stage::{Failure, Stage},
    summary::Summary,
};

const BAR: u64 = 64;

pub(super) fn play(world: &World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("What would it take to move a VM?")?;
    stage.say("While the guests go on writing, each host is asked what the other one lacks of its VMs.");
    let [north, south] = &world.hosts;
    let to_south = south.daemon().tcp_url();
    north.show(stage, &["diff", north.guests[0].name, "--to", &to_south])?;
    stage.say("In pictures, for every VM, and the other way too:");
    for (from, to) in [(north, south), (south, north)] {
        for guest in &from.guests {
            let diff = ask(from, guest, to.daemon())?;
            explain(stage, guest, to, &diff);
            note(summary, guest, &diff);
        }
    }
    stage.line("");
    stage.say(
        "A live migration today sends at least everything that is not zero. What is new on the other side is all that has \
         to be sent with memdex (before compression), and the plan is there before anything moves.",
    );
    Ok(())
}

/// The diff of a guest against another host.
pub(super) fn ask(from: &Host, guest: &Guest, to: &Daemon) -> Result<Diff, Failure> {
    let id = from.vm(guest)?.id;
    Ok(from.daemon().diff(&id, &to.tcp_url()))
}

fn explain(stage: &mut Stage, guest: &Guest, to: &Host, diff: &Diff) {
    let DiffCounts { total, zero, matched, missing, stale } = diff.bytes;
    let parts = [(Kind::Own, missing), (Kind::Stale, stale), (Kind::Shared, matched), (Kind::Zero, zero)];
    let picture = bar(stage, &parts, BAR);
    let elapsed = time(std::time::Duration::from_micros(diff.elapsed_us));
    stage.line("");
    stage.line(&format!("{} to {}  {picture}  asked and answered in {elapsed}", guest.name, to.name));
    let sent = missing + stale;
    stage.line(&format!(
        "  {} whole   {} not zero   {} already on {}   => {} to send: {} of the whole, {} of what is not zero",
        mib(total),
        mib(total - zero),
        mib(matched),
        to.name,
        mib(sent),
        percent(sent, total),
        percent(sent, total - zero),
    ));
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
