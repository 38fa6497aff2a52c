//! Is it true? First by memdex's own word, then by reading the RAM files behind its back.

use std::{collections::HashSet, time::Instant};

use memdex_tests::oracle;

use crate::{
    figures::{count, size, time},
    guest::Guest,
    hosts::{Host, World},
    page_map::Fingerprint,
    stage::{Failure, Stage},
    summary::Summary,
    truth,
};

pub(super) fn play(world: &mut World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("Is it true?")?;
    stage.say("memdex can check itself: it reads every page again and compares. The guest keeps running.");
    let north = &world.hosts[0];
    north.show(stage, &["verify", north.guests[0].name])?;

    stage.say(
        "But take nobody's word for it. The guests are paused, the maps brought up to date (`memdex sync`), and this \
         program, which has no code of memdex in it, reads every page of the RAM files and hashes it.",
    );
    for guest in world.hosts.iter_mut().flat_map(|host| &mut host.guests) {
        guest.qemu.pause();
    }
    for host in &world.hosts {
        for guest in &host.guests {
            stage.check()?;
            compare(host, guest, stage, summary)?;
        }
    }
    compare_diffs(world, stage, summary)?;
    for guest in world.hosts.iter_mut().flat_map(|host| &mut host.guests) {
        guest.qemu.resume();
    }
    stage.say("The guests go on.");
    Ok(())
}

/// Every page of the map against the page itself.
fn compare(host: &Host, guest: &Guest, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    let id = host.vm(guest)?.id;
    let begun = Instant::now();
    let generation = host.daemon().sync(&id);
    let synced = begun.elapsed();
    let vm = host.daemon().vm_of(guest.qemu.pid());
    let vm = vm.ok_or_else(|| Failure::Failed(format!("{} does not show {}", host.name, guest.name)))?;
    let report = oracle::compare(host.daemon(), &vm);
    let [absent, zero, current, _] = report.states;
    let text = format!(
        "{}: {} pages compared, {} differ ({} by fingerprint, {} zero; synced in {}, generation {generation})",
        guest.name,
        count(report.checked),
        count(report.differing),
        count(current),
        count(absent + zero),
        time(synced),
    );
    summary.check(stage, "map_is_true", report.differing == 0 && report.checked == vm.pages.total, &text);
    for example in &report.examples {
        stage.bad(example);
    }
    summary.figure(guest.name, "pages_compared", report.checked, "pages");
    summary.figure(guest.name, "pages_differing", report.differing, "pages");
    summary.figure(guest.name, "sync", synced.as_secs_f64() * 1e3, "ms");
    Ok(())
}

/// Every diff against one that is counted from the RAM files.
fn compare_diffs(world: &World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    let unreadable = |error| Failure::Failed(format!("a RAM file can't be read: {error}"));
    let read = |host: &Host| {
        let guests = host.guests.iter().map(|guest| truth::contents(&guest.ram));
        guests.collect::<Result<Vec<_>, _>>().map_err(unreadable)
    };
    let contents = [read(&world.hosts[0])?, read(&world.hosts[1])?];
    for (from, to) in [(0, 1), (1, 0)] {
        let theirs: HashSet<Fingerprint> = contents[to].iter().flatten().flatten().copied().collect();
        for (guest, pages) in world.hosts[from].guests.iter().zip(&contents[from]) {
            stage.check()?;
            let said = super::diff::ask(&world.hosts[from], guest, world.hosts[to].daemon())?;
            let truth = truth::diff(pages, &theirs);
            let text = if said.pages == truth {
                format!(
                    "{} to {}: the diff is {} new; counted by hand from the RAM files: the same, to the page",
                    guest.name,
                    world.hosts[to].name,
                    size(said.bytes.missing)
                )
            } else {
                format!(
                    "{} to {}: the diff is {:?}, but counted by hand {truth:?}",
                    guest.name, world.hosts[to].name, said.pages
                )
            };
            summary.check(stage, "diff_is_true", said.pages == truth, &text);
        }
    }
    Ok(())
}
