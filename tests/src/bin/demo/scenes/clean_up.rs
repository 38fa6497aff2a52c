//! The daemons stop, the guests don't notice; then everything goes.

use serde_json::json;

use crate::{
    figures::time,
    hosts::World,
    stage::{Failure, Stage},
    summary::Summary,
};

pub(super) fn play(world: &mut World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("Away with it")?;
    for host in &mut world.hosts {
        if let Some(mut daemon) = host.daemon.take() {
            let took = daemon.stop();
            stage.line(&format!("memdexd of {} has stopped, in {}", host.name, time(took)));
        }
    }
    let mut running = Vec::new();
    for guest in world.hosts.iter_mut().flat_map(|host| &mut host.guests) {
        let status = guest.qemu.qmp().run("query-status", &json!({}));
        if status["status"] == "running" {
            running.push(guest.name);
        }
    }
    let all = world.hosts.iter().map(|host| host.guests.len()).sum::<usize>();
    let text = format!("guests still running without memdexd: {}", running.join(", "));
    summary.check(stage, "guests_go_on", running.len() == all, &text);

    let mut files = Vec::new();
    for host in &mut world.hosts {
        for guest in host.guests.drain(..) {
            files.push(guest.ram.clone());
            drop(guest);
        }
    }
    let left: Vec<_> = files.iter().filter(|file| file.exists()).collect();
    let text = if left.is_empty() {
        "guests ended, their RAM files removed".to_owned()
    } else {
        format!("RAM files are left: {left:?}")
    };
    summary.check(stage, "nothing_left", left.is_empty(), &text);
    Ok(())
}
