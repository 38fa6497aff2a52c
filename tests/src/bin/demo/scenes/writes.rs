//! The guests write: pages become stale, and current again.

use std::time::{Duration, Instant};

use crate::{
    figures::{count, quantile, time},
    hosts::World,
    page_map,
    stage::{Failure, Stage},
    summary::Summary,
    watch::Watch,
};

/// Time between two looks at the map.
const LOOK: Duration = Duration::from_millis(15);
/// Time between two drawings.
const FRAME: Duration = Duration::from_millis(100);

pub(super) fn play(world: &World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("The guests write")?;
    let [north, south] = &world.hosts;
    let guest = &north.guests[0];
    stage.say(&format!(
        "A write to a protected page leaves a mark at once; the page is stale until it was read again. Here is {}, live.",
        guest.name
    ));
    stage.line("");
    let vm = north.vm(guest)?;
    let label = format!("vm=\"{}\"", vm.id);
    let theirs = super::contents(south)?;
    let before = north.metrics();
    let mut watch = Watch::new(&page_map::fetch(north.daemon(), &vm.id, None)?, theirs);
    let begun = Instant::now();
    let length = Duration::from_secs(if world.fast { 4 } else { 8 });
    let mut drawn: Option<Instant> = None;
    while begun.elapsed() < length {
        stage.pause(LOOK)?;
        watch.look(&page_map::fetch(north.daemon(), &vm.id, Some(watch.generation))?);
        if drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME) {
            drawn = Some(Instant::now());
            let lines = watch.lines(stage, begun.elapsed());
            stage.draw(&lines);
        }
    }
    if stage.is_terminal() {
        stage.keep_drawing();
    } else {
        watch.lines(stage, begun.elapsed()).iter().for_each(|line| stage.line(line));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = north.metrics();
    let grown = |name: &str| after.sum(name, &label) - before.sum(name, &label);
    let stale = grown("memdex_vm_pages_gone_stale_total");
    let read = grown("memdex_vm_pages_read_total");
    let hot = after.sum("memdex_vm_hot_pages", &label);

    let (settled, times) = (watch.settled(), watch.times());
    stage.line("");
    stage.say(&format!(
        "In {seconds:.0} s {} wrote {} pages ({:.0} a second). {} pages that it writes all the time are read now and then \
         instead of being chased.",
        guest.name,
        count(watch.written()),
        watch.written() as f64 / seconds,
        count(hot as u64),
    ));
    if let (Some(half), Some(most)) = (quantile(&times, 0.5), quantile(&times, 0.95)) {
        stage.say(&format!(
            "Of those that had been quiet before, half were current again within {}, 95 of 100 within {} (as seen by \
             looking every {}).",
            time(half),
            time(most),
            time(watch.gap()),
        ));
        summary.figure(guest.name, "stale_to_current_p50", half.as_secs_f64() * 1e3, "ms");
        summary.figure(guest.name, "stale_to_current_p95", most.as_secs_f64() * 1e3, "ms");
    }
    summary.figure(guest.name, "pages_gone_stale", stale / seconds, "pages/s");
    summary.figure(guest.name, "pages_read", read / seconds, "pages/s");
    summary.figure(guest.name, "hot_pages", hot, "pages");
    let text =
        format!("writes were seen and read again: {} pages became current while we looked", count(settled));
    summary.check(stage, "writes_seen", stale > 0.0 && settled > 0, &text);
    Ok(())
}
