//! The scenes, one file each, in the order in which they are played.

mod boot;
mod check;
mod clean_up;
mod cost;
mod diff;
mod index;
mod map;
mod migrate;
mod writes;

use std::collections::HashSet;

use crate::{
    hosts::{Host, World},
    page_map::{self, Fingerprint},
    stage::{Failure, Stage},
    summary::Summary,
};

/// Plays all scenes.
pub(crate) fn play(world: &mut World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.title(
        "memdex",
        "Moving a running virtual machine to another host means sending its memory, all of it. Yet most of that memory \
         is zero, or the other host has the same already: the same kernel, the same programs. memdex keeps on every \
         host an always current fingerprint of every page of every VM. So when a VM is to move, it is known at once \
         what the other host lacks, and only that is sent. Here are two hosts, on this machine, with real VMs.",
    );
    boot::play(world, stage, summary)?;
    index::play(world, stage, summary)?;
    map::play(world, stage)?;
    writes::play(world, stage, summary)?;
    diff::play(world, stage, summary)?;
    check::play(world, stage, summary)?;
    cost::play(world, stage, summary)?;
    migrate::play(world, stage, summary)?;
    clean_up::play(world, stage, summary)?;
    summary.complete();
    Ok(())
}

/// Every content that a host holds, by its daemon's word.
fn contents(host: &Host) -> Result<HashSet<Fingerprint>, Failure> {
    let mut all = HashSet::new();
    for vm in host.vms()? {
        let map = page_map::fetch(host.daemon(), &vm.id, None)?;
        let current = map.pages.iter().filter(|page| page.state == memdex_tests::contract::State::Current);
        all.extend(current.filter_map(|page| page.fingerprint));
    }
    Ok(all)
}
