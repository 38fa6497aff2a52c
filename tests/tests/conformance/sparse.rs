//! RAM of 64 GiB of which next to nothing is there: known soon, and a write anywhere in it is seen or found like any other.

use std::time::Duration;

use memdex_tests::{
    Daemon, Scratch, Tiny,
    contract::{Page, Vm},
    daemon, oracle, wait,
};

use crate::table::Witness;

/// Guest page at which it is plugged in: 4 GiB.
const FIRST: u64 = 1 << 20;
const PAGES: u64 = 64 << 18;
/// Pages of slot 0.
const BEFORE: u64 = 16 << 8;
/// Pages that are written, far from each other.
const ISLANDS: [u64; 4] = [0, 5 << 18, (40 << 18) + 17, PAGES - 1];

/// What has changed since a generation: the whole map would be sixteen million lines.
fn changed(daemon: &Daemon, vm: &str, since: &str) -> Vec<Page> {
    let lines = daemon.succeed(&["pages", vm, "--since", since, "-o", "jsonl"]);
    let pages = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    pages.map(|line| serde_json::from_slice::<Page>(line).expect("a line of pages")).collect()
}

/// Exactly the islands have changed and are shown with what they hold; what is wrong otherwise.
fn right(daemon: &Daemon, vm: &Vm, since: &str) -> Result<(), String> {
    let changed = changed(daemon, &vm.id, since);
    let source = oracle::source(vm, &vm.coverage[1]);
    let shown = |page: &Page| page.fingerprint.is_some() && page.fingerprint == oracle::truth(page, &source);
    let islands = changed.iter().map(|page| page.page).eq(ISLANDS.map(|page| BEFORE + page));
    if islands && changed.iter().all(shown) {
        return Ok(());
    }
    let wrong: Vec<_> = changed.iter().map(|page| (page, oracle::truth(page, &source))).collect();
    Err(format!(
        "changed since {since}, with what memory holds: {wrong:?}; the VM: {:?}",
        daemon.vm_of(vm.pid)
    ))
}

#[test]
fn huge_sparse_ram() {
    let scratch = Scratch::new("sparse");
    for (witness, seen) in [(Witness::All, true), (Witness::Rehash, false)] {
        let mut guest = Tiny::start(&scratch, &scratch.name("s"));
        let write = |guest: &mut Tiny, seed: usize| {
            for (at, page) in ISLANDS.iter().enumerate() {
                guest.run(&format!("poke {} 1 {}", FIRST + page, seed + at));
            }
        };
        let options = daemon::Options { arguments: witness.arguments(), ..daemon::Options::default() };
        let daemon = Daemon::start_with(&scratch, &format!("{witness:?}"), &options);
        guest.run(&format!("slot add 1 {FIRST} {PAGES}"));
        let (vm, _) = wait::until("all of the memory to be known", Duration::from_secs(20), || {
            let vm = daemon.vm_of(guest.pid())?;
            (vm.pages.total == BEFORE + PAGES && vm.pages.stale == 0).then_some(vm)
        });
        assert!(vm.pages.absent >= PAGES, "{:?}", vm.pages);

        let mut since = daemon.sync(&vm.id);
        // Twice: pages that appear, and pages that are there.
        for seed in [100, 200] {
            write(&mut guest, seed);
            if seen {
                wait::until_right("the writes to be known", Duration::from_secs(5), || {
                    right(&daemon, &vm, &since)
                });
            } else {
                wait::pause(Duration::from_secs(1));
                assert!(
                    changed(&daemon, &vm.id, &since).is_empty(),
                    "{witness:?} is better than it should be"
                );
            }
            let after = daemon.sync(&vm.id);
            right(&daemon, &vm, &since).unwrap_or_else(|wrong| panic!("{witness:?}, round {seed}: {wrong}"));
            since = after;
        }
    }
}
