//! A diff that is known already: a VM of 16 GiB, a hundred peers of 64 GiB each that are followed.
//!
//! Owns the synthetic maps: the structures are the daemon's own, what is in them is made up, because no machine at hand has 6.4 TiB. Every page of the VM differs; peer i holds the share i/100 of its pages, and
//! for the rest contents of its own, 16 Mi in all. All that is held at once: 100 pictures of some 35 MiB, the map, the reverse index.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use indexer::{
    map::{Content, ContentIndex, Layout, MapId, PageMap},
    picture::{build, peers::PeerPicture},
};
use memdex_wire::{
    Fingerprint,
    picture::{Change, Position},
};

use crate::figure::{Bound, Figures, median};

pub(crate) const NAMES: [&str; 4] = [
    "diff_warm_16gib_100_peers_ms",
    "diff_warm_after_10k_changes_ms",
    "peer_picture_bytes_per_content",
    "peer_change_us",
];

const PAGES: u32 = 4 << 20;
const PEERS: u64 = 100;
const CONTENTS: u64 = 16 << 20;
/// Pages that change, and contents that come or go at each peer, between two diffs; the daemon takes in what has changed once a second.
const CHANGES: [u32; 2] = [1_000, 10_000];
const ROUNDS: u32 = 6;

/// Contents are numbers: those of the VM below 2³², those of each peer beside them.
pub(crate) fn content(number: u64) -> Fingerprint {
    let mut bytes = [0; Fingerprint::LEN];
    // A mixer as good as a hash where nobody chooses the numbers (splitmix64's).
    let mut x = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    for part in bytes.chunks_mut(8) {
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        part.copy_from_slice(&x.to_le_bytes());
    }
    Fingerprint::new(bytes)
}

fn peer(number: u64) -> PeerPicture {
    let shared = u64::from(PAGES) * number / PEERS;
    let picture = build(0x0123_4567_89AB_CDEF ^ number << 1, CONTENTS, |each| {
        (0..shared).for_each(|n| each(&content(n)));
        (shared..CONTENTS).for_each(|n| each(&content((number + 1) << 32 | n)));
    });
    let peer = PeerPicture::new(2 * CONTENTS);
    peer.replace(picture, Position { epoch: number, sequence: 0 });
    peer
}

pub(crate) fn measure(figures: &mut Figures) {
    eprintln!(
        "known diffs: a VM of {PAGES} pages, {PEERS} peers of {CONTENTS} contents each (made up, some minutes)"
    );
    let id = MapId(0);
    let index = ContentIndex::new().expect("the kernel has random bytes");
    let mut map = PageMap::new(Arc::new(Layout::one_region(PAGES)));
    let publish = |map: &mut PageMap, first: u32, numbers: &[u64]| {
        let contents: Vec<_> = numbers.iter().map(|n| Some(Content::Fingerprint(content(*n)))).collect();
        let mut changes = Vec::new();
        map.publish(map.next_generation(), true, first, &contents, &mut changes);
        index.follow(id, &changes);
    };
    for first in (0..PAGES).step_by(4096) {
        let numbers: Vec<u64> = (first..first + 4096).map(u64::from).collect();
        publish(&mut map, first, &numbers);
    }
    let begun = Instant::now();
    // Two at a time: each sorts some millions of keys.
    let peers: Vec<PeerPicture> = std::thread::scope(|scope| {
        let half = |part: u64| {
            scope.spawn(move || (0..PEERS).filter(|n| n % 2 == part).map(peer).collect::<Vec<_>>())
        };
        let (even, odd) = (half(0), half(1));
        let (even, odd) = (even.join().expect("no panic"), odd.join().expect("no panic"));
        even.into_iter().zip(odd).flat_map(|(even, odd)| [even, odd]).collect()
    });
    let made = begun.elapsed();
    let begun = Instant::now();
    let snapshot = map.snapshot();
    for (number, peer) in peers.iter().enumerate() {
        // Those made first have been silent for long: what counts is that nothing has changed.
        let _ = peer.apply(&[], Position { epoch: number as u64, sequence: 0 }, &index);
        let pages = peer.diff(id, &snapshot).expect("it was just heard").pages;
        let expected = u64::from(PAGES) * number as u64 / PEERS;
        let wrong = pages.matched - expected;
        assert!(wrong < (u64::from(PAGES) - expected) / 1000 + 10, "{wrong} of {expected} seem to be there");
    }
    drop(snapshot);
    let first = begun.elapsed() / PEERS as u32;
    let (mut few, mut many, mut change) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let changes = CHANGES[round as usize % 2];
        // Scattered pages get contents that nobody has, and each peer gets some of the VM's and loses others.
        for n in 0..changes {
            let page = (n * 419 + round) % PAGES;
            publish(&mut map, page, &[1 << 60 | u64::from(round) << 32 | u64::from(page)]);
        }
        for (number, peer) in peers.iter().enumerate() {
            let told: Vec<Change> = (0..u64::from(changes))
                .map(|n| Change::new(content(n * 413 + u64::from(round)).prefix(), n % 2 == 0))
                .collect();
            let begun = Instant::now();
            let position = Position { epoch: number as u64, sequence: u64::from(round) };
            for told in told.chunks(8191) {
                let _ = peer.apply(told, position, &index);
            }
            change.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(changes));
        }
        for peer in &peers {
            let begun = Instant::now();
            let snapshot = map.snapshot();
            let known = peer.diff(id, &snapshot).expect("it was just heard");
            assert_eq!(known.pages.matched + known.pages.missing, u64::from(PAGES));
            if round % 2 == 0 { &mut few } else { &mut many }.push(begun.elapsed());
        }
    }
    let milliseconds = |time: &Duration| time.as_secs_f64() * 1e3;
    let worst = |times: &[Duration]| times.iter().max().map_or(0.0, milliseconds);
    let how = |changes: u32, times: &[Duration]| {
        format!(
            "median of {} diffs (worst {:.1}), each after {changes} scattered pages of the VM and {changes} contents of the peer have changed",
            times.len(),
            worst(times)
        )
    };
    let how_few = format!(
        "{}; a first look takes {:.0} ms, a picture {:.1} s to make",
        how(CHANGES[0], &few),
        milliseconds(&first),
        made.as_secs_f64() * 2.0 / PEERS as f64
    );
    figures.add(NAMES[0], median(few.iter().map(milliseconds).collect()), "ms", Bound::AtMost(5.0), how_few);
    let how_many = how(CHANGES[1], &many);
    figures.add(
        NAMES[1],
        median(many.iter().map(milliseconds).collect()),
        "ms",
        Bound::AtMost(20.0),
        how_many,
    );
    let bytes: u64 = peers.iter().map(|peer| peer.figures().bytes).sum();
    let each = bytes as f64 / (PEERS * CONTENTS) as f64;
    let how = "picture, changes not yet merged, and what is known of the VM, over the contents of all peers";
    figures.add(NAMES[2], each, "B", Bound::AtMost(3.0), how);
    let how = "to apply one change of a peer and find the pages that it is about";
    figures.add(NAMES[3], median(change), "us", Bound::AtMost(2.0), how);
}
