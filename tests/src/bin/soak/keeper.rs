//! A keeper: has one guest at a time, lets it write, pauses it, has every page judged, and starts another one in the end.
//!
//! Each time the guest stands still the map is judged twice: as it is by itself, once the daemon says that whatever was written before the
//! pause can no longer have gone unnoticed; and after a sync, when no page may be stale.

use std::time::{Duration, Instant};

use memdex_tests::{Daemon, contract::Vm, http, wait};

use crate::{
    guests::Guest, guests::Kind, judge::Judge, page_map::PageMap, random::Random, tally::Tally, world::World,
};

/// How long a daemon may take to show a VM as it is; it may just have begun, on a busy machine.
const SHOWN: Duration = Duration::from_secs(20);
/// How long to wait for the daemon to have noticed everything; what it shows by itself is not judged if it does not say so by then.
const NOTICED: Duration = Duration::from_secs(3);

/// Keeps guests of a kind until it is over.
pub(crate) fn keep(world: &World<'_>, kind: Kind, mut random: Random) {
    let mut number = 0;
    while !world.over() {
        let mut random = random.branch();
        let mut guest = kind.start(world, number, &mut random);
        number += 1;
        world.add(Tally { guests: 1, ..Tally::default() });
        let mut judge = Judge::new();
        for _ in 0..random.between(kind.rounds()) {
            if world.over() {
                return;
            }
            let acts = random.between(1..4);
            (0..acts).for_each(|_| guest.act(&mut random));
            world.sleep(Duration::from_millis(random.between(10..200)));
            guest.pause();
            let mut tally = look(world, &*guest, &mut judge);
            tally.acts = acts;
            // A guest whose vCPU KVM has stopped for good was judged like any other, and is replaced. That is said in the report, with its figure.
            let goes_on = guest.resume();
            if let Err(words) = &goes_on {
                tally.given_up += 1;
                tally.last_words.insert(format!("{kind:?}: {}", words.trim()));
            }
            world.add(tally);
            if goes_on.is_err() {
                break;
            }
        }
    }
}

/// Judges a paused guest.
fn look(world: &World<'_>, guest: &dyn Guest, judge: &mut Judge) -> Tally {
    let paused = Instant::now();
    let mut tally = Tally::default();
    let daemon = world.daemon();
    if let Some(vm) = noticed(&daemon, guest, paused) {
        let map = PageMap::of(&daemon, &vm.id);
        judge.compare(&vm, &map, false, &mut tally);
    }
    let as_it_is = || as_it_is(&daemon, guest);
    let (vm, _) = wait::until("the VM to be shown as it is", SHOWN, as_it_is);
    let path = format!("/v1/vms/{}/sync", vm.id);
    let answer = http::unix(daemon.socket(), "POST", &path, &[]).expect("the daemon answers");
    assert_eq!(answer.status, 200, "POST {path}: {}", String::from_utf8_lossy(&answer.body));
    let vm = as_it_is().expect("a guest that stands still does not change");
    judge.compare(&vm, &PageMap::of(&daemon, &vm.id), true, &mut tally);
    if vm.tracking != "exact" {
        tally.advisory += 1;
        tally.reasons.extend(vm.advisory_reasons);
    }
    if vm.mismatches > 0 {
        tally.wrong(format!("{}: the daemon itself has found {} mismatches", vm.name, vm.mismatches));
    }
    tally
}

/// The VM, if the daemon shows all of its memory.
fn as_it_is(daemon: &Daemon, guest: &dyn Guest) -> Option<Vm> {
    daemon.vm_of(guest.pid()).filter(|vm| vm.memory_bytes == guest.memory_bytes())
}

/// The VM once everything that was written before `paused` must have been noticed, by the daemon's own word; `None` if that takes long.
fn noticed(daemon: &Daemon, guest: &dyn Guest, paused: Instant) -> Option<Vm> {
    while paused.elapsed() < NOTICED {
        // What the answer says was true at some moment after the question, and is cut to whole milliseconds.
        let since_pause = paused.elapsed().as_millis() as u64;
        if let Some(vm) = as_it_is(daemon, guest)
            && vm.staleness_ms < since_pause
        {
            return Some(vm);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
