//! Diffs, over the number of peers that are followed: how long each takes, and what the daemon holds for them.
//!
//! One real daemon with a VM of its own is followed under many names: to the daemon that follows, each is a peer with a connection and a picture of its own.

use std::{thread, time::Duration};

use memdex_tests::{Scratch, daemon::Daemon, wait};
use migrate_client::{Client, ClientOptions, HostUrl};
use tokio::runtime::Runtime;

use crate::{cpu_clock, daemon, figure::median, vmm::Vmm};

const PEERS: [usize; 4] = [1, 4, 16, 64];
/// Memory of the VM here and of the one there, all of whose pages differ; half of each is the same.
pub(super) const MIB: usize = 1024;
const PAGES: usize = MIB << 8;
/// Pages of the VM that are written before each diff.
pub(super) const WRITTEN: usize = 1000;
const ROUNDS: usize = 5;

/// So many peers.
pub(super) struct Point {
    pub(super) peers: usize,
    /// Milliseconds that the diff with one of them takes, that is known already: the middle one, and the longest.
    pub(super) known_ms: f64,
    pub(super) longest_ms: f64,
    /// Milliseconds that one takes for which the peer is asked.
    pub(super) asked_ms: f64,
    /// Memory for the pictures of peers, as the daemon says, and all that it takes more than without peers.
    pub(super) pictures_mib: f64,
    pub(super) more_mib: f64,
    /// Share of a core that the daemon takes while VM and peers rest, in percent.
    pub(super) idle_percent: f64,
}

pub(super) fn measure() -> Vec<Point> {
    eprintln!("diffs with {PEERS:?} peers");
    let scratch = Scratch::new("bench-peers");
    let there = Vmm::start(&scratch, "there", MIB, PAGES / 2, 2);
    let peer = daemon::start(&scratch, "peer", &format!("*-{}", there.pid()));
    daemon::indexed(&peer, there.pid());
    let alone = with(0, &peer).0;
    PEERS.into_iter().filter_map(|peers| with(peers, &peer).1.map(|point| point.beside(alone))).collect()
}

impl Point {
    /// `alone`: what the daemon takes without peers.
    fn beside(self, alone: f64) -> Self {
        let point = Self { more_mib: self.more_mib - alone, ..self };
        let Self { peers, known_ms, longest_ms, more_mib, .. } = point;
        eprintln!("  {peers} peers: {known_ms:.2} ms, longest {longest_ms:.2} ms, {more_mib:.1} MiB");
        point
    }
}

/// MiB that a daemon with so many peers takes, and what its diffs cost.
fn with(peers: usize, peer: &Daemon) -> (f64, Option<Point>) {
    let scratch = Scratch::new("bench-peers-here");
    let mut vmm = Vmm::start(&scratch, "here", MIB, PAGES / 2, 1);
    let names: Vec<String> = (0..peers).map(|n| format!("peer{n}")).collect();
    let arguments: Vec<String> =
        names.iter().flat_map(|name| ["--peer".to_owned(), format!("{name}={}", peer.url())]).collect();
    let mut daemon = daemon::start_with(&scratch, "daemon", &format!("*-{}", vmm.pid()), &arguments);
    let vm = daemon::indexed(&daemon, vmm.pid()).id;
    let pid = daemon.process().pid();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let url: HostUrl = daemon.url().parse().expect("the daemon's own URL");
    // A connection is of the runtime that it was made in.
    let client = {
        let _inside = runtime.enter();
        Client::new(url, ClientOptions::default()).expect("a client")
    };
    for name in &names {
        wait::until(&format!("{name} to be known"), Duration::from_secs(60), || {
            diff(&runtime, &client, &vm, name).1.then_some(())
        });
    }
    // Once all is known it is kept up to date once a second.
    thread::sleep(Duration::from_secs(2));
    let before = cpu_clock::used(pid).as_secs_f64();
    thread::sleep(Duration::from_secs(3));
    let idle_percent = (cpu_clock::used(pid).as_secs_f64() - before) / 3.0 * 100.0;
    let resident = daemon::resident(pid) / f64::from(1 << 20);
    if names.is_empty() {
        return (resident, None);
    }
    let mut known = Vec::new();
    for round in 0..ROUNDS {
        vmm.write(round * WRITTEN, WRITTEN, 100_000);
        thread::sleep(Duration::from_millis(200));
        for name in &names {
            let (milliseconds, is_known) = diff(&runtime, &client, &vm, name);
            assert!(is_known, "what {name} holds is followed");
            known.push(milliseconds);
        }
    }
    let asked = (0..ROUNDS).map(|_| {
        let diff = runtime.block_on(client.diff_asked(&vm, &names[0])).expect("the peer answers");
        diff.elapsed_us as f64 / 1e3
    });
    let point = Point {
        peers,
        longest_ms: known.iter().copied().fold(0.0, f64::max),
        known_ms: median(known),
        asked_ms: median(asked.collect()),
        pictures_mib: daemon::metric(&daemon, "memdex_peer_picture_bytes") / f64::from(1 << 20),
        more_mib: resident,
        idle_percent,
    };
    (resident, Some(point))
}

/// Milliseconds that a diff takes, and whether it was known already.
fn diff(runtime: &Runtime, client: &Client, vm: &str, peer: &str) -> (f64, bool) {
    let diff = runtime.block_on(client.diff(vm, peer)).expect("the daemon answers");
    (diff.elapsed_us as f64 / 1e3, diff.picture_age_ms.is_some())
}
