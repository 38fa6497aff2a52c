//! RAM of 64 GiB of which next to nothing is there: known soon, right, and in no more memory than it needs.

use std::time::Duration;

use memdex_tests::{
    Daemon, Scratch, Tiny,
    contract::{Page, State},
    daemon, oracle, wait,
};

use crate::table::Witness;

/// Where it is plugged in: at 4 GiB.
const FIRST: u64 = 1 << 20;
const PAGES: u64 = 64 << 18;
/// Pages that are written, far from each other.
const ISLANDS: [u64; 4] = [0, 5 << 18, (40 << 18) + 17, PAGES - 1];

fn written(guest: &mut Tiny, seed: u64) {
    for (at, page) in ISLANDS.iter().enumerate() {
        guest.run(&format!("poke {} 1 {}", FIRST + page, seed + at as u64));
    }
}

/// The pages that are known not to be zero, from the `slot 0` pages on: the whole map would be sixteen million lines.
fn islands(daemon: &Daemon, vm: &str, since: &str) -> Vec<Page> {
    let lines = daemon.succeed(&["pages", vm, "--since", since, "-o", "jsonl"]);
    let pages = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let pages = pages.map(|line| serde_json::from_slice::<Page>(line).expect("a line of pages"));
    pages.filter(|page| page.region == 1 && page.state == State::Current).collect()
}

#[test]
fn huge_sparse_ram() {
    let scratch = Scratch::new("sparse");
    let mut guest = Tiny::start(&scratch, &scratch.name("s"));
    let pid = guest.pid();
    for witness in [Witness::All, Witness::Rehash] {
        let options = daemon::Options { arguments: witness.arguments(), ..daemon::Options::default() };
        let daemon = Daemon::start_with(&scratch, &format!("{witness:?}"), &options);
        let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
        let before = daemon.sync(&vm.id);
        guest.run(&format!("slot add 1 {FIRST} {PAGES}"));
        written(&mut guest, 100);
        wait::until("the memory to be known", Duration::from_secs(10), || {
            let pages = daemon.vm_of(pid)?.pages;
            (pages.total == 4096 + PAGES && pages.stale == 0).then_some(())
        });
        let truth = |context: &str| {
            let vm = daemon.vm_of(pid).expect("it runs");
            let found = islands(&daemon, &vm.id, &before);
            let offsets: Vec<u64> = found.iter().map(|page| page.page - 4096).collect();
            assert_eq!(offsets, ISLANDS, "{context}: {witness:?}: {:?}", vm.pages);
            let source = oracle::source(&vm, &vm.coverage[1]);
            for page in &found {
                assert_eq!(
                    page.fingerprint,
                    oracle::truth(page, &source),
                    "{context}: {witness:?}: {page:?}"
                );
            }
        };
        truth("first");
        written(&mut guest, 200);
        if witness == Witness::All {
            wait::until("the writes to be known", Duration::from_secs(5), || {
                let vm = daemon.vm_of(pid)?;
                let source = oracle::source(&vm, &vm.coverage[1]);
                let found = islands(&daemon, &vm.id, &before);
                let right = found.iter().filter(|page| page.fingerprint == oracle::truth(page, &source));
                (right.count() == ISLANDS.len()).then_some(())
            });
        }
        daemon.sync(&vm.id);
        truth("after a sync");
        guest.run("slot del 1");
    }
}
