//! The daemons start, and know every page some moments later.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use memdex_tests::PAGE;

use crate::{
    figures,
    hosts::{Host, VmView, World},
    stage::{Failure, Ink, Stage},
    summary::Summary,
};

/// Longest first pass over all VMs of a host.
const BOUND: Duration = Duration::from_secs(60);
/// Signs in a progress bar.
const BAR: u64 = 40;

pub(super) fn play(world: &mut World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("memdexd starts on both hosts")?;
    stage.say(
        "It finds the VMs by itself. For each it write-protects the memory, reads it and fingerprints every page (BLAKE3). \
         The VMs keep running.",
    );
    for index in 0..world.hosts.len() {
        world.start_daemon(stage, index)?;
        index_host(&world.hosts[index], stage, summary)?;
    }
    for host in &world.hosts {
        host.show(stage, &["vms"])?;
    }
    for host in &world.hosts {
        for guest in &host.guests {
            let vm = host.vm(guest)?;
            summary.figure(guest.name, "tracking", vm.tracking.clone(), "");
            if vm.tracking != "exact" {
                let why = vm.advisory_reasons.join("; ");
                stage.say(&format!("Tracking of {} is {}: {why}", guest.name, vm.tracking));
            }
        }
    }
    stage.say(
        "`exact`: no write can go unseen. `current`: content known by fingerprint; `zero` and `absent` need none; `stale`: \
         written since, or not read yet.",
    );
    Ok(())
}

/// Shows how the VMs of a host are read for the first time.
fn index_host(host: &Host, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut seen: BTreeMap<u32, VmView> = BTreeMap::new();
    let complete = |vm: &VmView| vm.indexed.total > 0 && vm.indexed.done >= vm.indexed.total;
    while seen.len() < host.guests.len() || !seen.values().all(complete) {
        stage.pause(Duration::from_millis(10))?;
        seen.extend(host.vms()?.into_iter().map(|vm| (vm.pid, vm)));
        let lines: Vec<String> =
            host.guests.iter().map(|guest| line(stage, guest.name, seen.get(&guest.qemu.pid()))).collect();
        stage.draw(&lines);
        if begun.elapsed() > BOUND {
            return Err(Failure::Failed(format!(
                "{} has not read its VMs within {} s",
                host.name,
                BOUND.as_secs()
            )));
        }
    }
    stage.wipe();
    for guest in &host.guests {
        let vm = &seen[&guest.qemu.pid()];
        summary.figure(guest.name, "first_index", vm.indexed.elapsed_ms, "ms");
        let text = line(stage, guest.name, Some(vm));
        stage.line(&text);
    }
    Ok(())
}

fn line(stage: &Stage, name: &str, vm: Option<&VmView>) -> String {
    let Some(vm) = vm else { return format!("{name}  not found yet") };
    let indexed = vm.indexed;
    let filled = (indexed.done * BAR).checked_div(indexed.total).unwrap_or(0) as usize;
    let bar = stage.paint(Ink::Good, &"█".repeat(filled))
        + &stage.paint(Ink::Quiet, &"·".repeat(BAR as usize - filled));
    format!(
        "{name}  {bar}  {} pages, {}, after {}",
        figures::count(indexed.done),
        figures::size(indexed.done * PAGE),
        figures::time(Duration::from_millis(indexed.elapsed_ms)),
    )
}
