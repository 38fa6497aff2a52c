//! Guests boot, before there is any memdex.

use std::time::Duration;

use memdex_tests::image::Workload;

use crate::{
    figures,
    hosts::{Host, World},
    stage::{Failure, Stage},
    summary::Summary,
};

/// Guests by host, and whether they move later.
const GUESTS: [(usize, &str, bool); 3] = [(0, "web1", true), (0, "web2", false), (1, "web3", false)];

pub(super) fn play(world: &mut World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("Ordinary virtual machines")?;
    let (what, memory, accelerator) = (
        if world.fast { "a small Linux" } else { "Debian with systemd, redis and nginx" },
        figures::size(world.mib << 20),
        World::accelerator(),
    );
    stage.say(&format!(
        "Three QEMU guests boot from one image: {what}, {memory} each (by {accelerator}). Each has a workload that keeps \
         writing. Nothing in them, and nothing in QEMU, knows of memdex.",
    ));
    for (seed, (host, name, moves)) in (1..).zip(GUESTS) {
        stage.check()?;
        world.start_guest(host, name, moves, Workload { rate: 20, seed, ..Workload::default() })?;
    }
    world.wait_for_guests(stage, |stage, hosts, time| {
        let lines = lines(hosts, Some(time));
        stage.draw(&lines);
    })?;
    stage.wipe();
    for line in lines(&world.hosts, None) {
        stage.line(&line);
    }
    for guest in world.hosts.iter().flat_map(|host| &host.guests) {
        summary.figure(guest.name, "boot", guest.booted.map(|time| time.as_secs_f64()), "s");
    }
    Ok(())
}

fn lines(hosts: &[Host], time: Option<Duration>) -> Vec<String> {
    let line = |host: &Host| {
        let guests = host.guests.iter().map(|guest| match (guest.booted, time) {
            (Some(time), _) => format!("{} up after {}", guest.name, figures::time(time)),
            (None, Some(time)) => format!("{} booting, {}", guest.name, figures::time(time)),
            (None, None) => format!("{} booting", guest.name),
        });
        format!("host {}   {}", host.name, guests.collect::<Vec<_>>().join("   "))
    };
    hosts.iter().map(line).collect()
}
