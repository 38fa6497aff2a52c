//! What HTTP reaches in bulk: maps, contents and look-ups, each beside a plain copy of as many bytes over TCP on loopback, in turns; and what a
//! thousand clients at once make the daemon hold.
//!
//! Owns what is asked and compared. The client is `raw.rs`: an outside tool that cares for speed would not do more.

mod clients;
mod plain;
mod raw;

use std::time::Instant;

use memdex_tests::{Daemon, Scratch};
use memdex_wire::{
    Fingerprint,
    bulk::{self, KeyId, PagesHeader},
};

use crate::{
    daemon,
    figure::{Bound, Figures, median},
    vmm::Vmm,
};
use raw::Connection;

pub(crate) const NAMES: [&str; 4] =
    ["http_map_over_tcp", "http_pages_over_tcp", "http_lookup_over_tcp", "http_clients_memory_mib"];

const MIB: usize = 1024;
const PAGES: usize = MIB << 8;
const ROUNDS: usize = 9;
/// Connections of a client that asks for more than one thing: as many as `migrate_client` has look-ups under way, halved for two cores.
const CONNECTIONS: usize = 2;

/// What measures one of them: with a daemon, the path of a map, and the contents of that.
type Measure = fn(&mut Figures, &Daemon, &str, &[Fingerprint]);

pub(crate) fn measure(figures: &mut Figures, wanted: impl Fn(&str) -> bool) {
    if NAMES[..3].iter().any(|name| wanted(name)) {
        let scratch = Scratch::new("bench-http");
        let vmm = Vmm::start(&scratch, "vmm", MIB, 0, 1);
        let daemon = daemon::start(&scratch, "daemon", &format!("*-{}", vmm.pid()));
        let vm = daemon::indexed(&daemon, vmm.pid());
        let mut connection = connect(&daemon);
        let path = format!("/v1/vms/{}/pages", vm.id);
        let contents = map(&mut connection, &path);
        assert_eq!(contents.len(), PAGES, "every page has a fingerprint");
        let all: [(_, Measure); 3] =
            [(NAMES[0], measure_map), (NAMES[1], measure_pages), (NAMES[2], measure_lookup)];
        for (_, measure) in all.iter().filter(|(name, _)| wanted(name)) {
            measure(figures, &daemon, &path, &contents);
        }
    }
    if wanted(NAMES[3]) {
        clients::measure(figures, NAMES[3]);
    }
}

fn connect(daemon: &Daemon) -> Connection {
    let token = std::fs::read_to_string(daemon.token_file()).expect("the daemon made a token");
    Connection::open(daemon.port(), token.trim())
}

/// The fingerprints of all pages.
fn map(connection: &mut Connection, path: &str) -> Vec<Fingerprint> {
    let mut bytes = Vec::new();
    connection.ask("GET", path, bulk::PAGES, &[], |piece| bytes.extend_from_slice(piece));
    let (head, records) = bytes.split_first_chunk::<{ bulk::PAGES_HEADER }>().expect("a header");
    PagesHeader::decode(head, 1 << 32).expect("a map's header");
    let records = records.as_chunks::<{ bulk::PAGE_RECORD }>().0.iter();
    records.filter_map(|record| bulk::decode_page(record).expect("a record").fingerprint).collect()
}

/// Times `http` and `tcp` in turns; the middle of the ratios, and of the seconds of each.
fn in_turns(mut http: impl FnMut(), mut tcp: impl FnMut()) -> (f64, f64, f64) {
    let seconds = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        begun.elapsed().as_secs_f64()
    };
    http();
    let rounds: Vec<_> = (0..ROUNDS).map(|_| (seconds(&mut tcp), seconds(&mut http))).collect();
    (
        median(rounds.iter().map(|(tcp, http)| tcp / http).collect()),
        median(rounds.iter().map(|round| round.1).collect()),
        median(rounds.iter().map(|round| round.0).collect()),
    )
}

fn measure_map(figures: &mut Figures, daemon: &Daemon, path: &str, _: &[Fingerprint]) {
    const TIMES: usize = 8;
    let whole = bulk::PAGES_HEADER + PAGES * bulk::PAGE_RECORD;
    let mut connection = connect(daemon);
    let memory = vec![0x5a; whole];
    let (ratio, http, tcp) = in_turns(
        || {
            for _ in 0..TIMES {
                assert_eq!(connection.ask("GET", path, bulk::PAGES, &[], |_| ()), whole);
            }
        },
        || plain::copy(&memory, TIMES),
    );
    let rate = |seconds: f64| (TIMES * whole) as f64 / seconds / 1e9;
    let how = format!(
        "{:.2} GB/s over {:.2}: the binary map of {PAGES} pages, {TIMES} times on one connection, against a plain copy of as many bytes",
        rate(http),
        rate(tcp)
    );
    figures.add(NAMES[0], ratio, "ratio", Bound::AtLeast(0.5), how);
}

fn measure_pages(figures: &mut Figures, daemon: &Daemon, _: &str, contents: &[Fingerprint]) {
    let bodies: Vec<_> = contents
        .chunks(bulk::MAX_CONTENTS)
        .map(|part| bulk::encode_fingerprints(KeyId::PLAIN, part))
        .collect();
    let total = bodies.len() * bulk::CONTENTS_HEADER + PAGES * bulk::CONTENT_RECORD;
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| connect(daemon)).collect();
    let memory = vec![0x5a; total];
    let (ratio, http, tcp) = in_turns(
        || {
            let got = side_by_side(&mut connections, &bodies, |connection, body| {
                connection.ask("POST", "/v1/content/pages", bulk::CONTENTS, body, |_| ())
            });
            assert_eq!(got.iter().sum::<usize>(), total);
        },
        || plain::copy(&memory, 1),
    );
    let how = format!(
        "{:.2} GB/s over {:.2}: the contents of {PAGES} pages by fingerprint, {} a request, {CONNECTIONS} connections, against a plain copy of as many bytes; the daemon copies and hashes each page before it is sent",
        total as f64 / http / 1e9,
        total as f64 / tcp / 1e9,
        bulk::MAX_CONTENTS
    );
    figures.add(NAMES[1], ratio, "ratio", Bound::AtLeast(0.5), how);
}

fn measure_lookup(figures: &mut Figures, daemon: &Daemon, _: &str, contents: &[Fingerprint]) {
    // Every other one is not held.
    let mut asked = Vec::with_capacity(2 * contents.len());
    for content in contents {
        let mut other = *content.as_bytes();
        other.reverse();
        asked.extend([*content, Fingerprint::new(other)]);
    }
    let bodies: Vec<_> =
        asked.chunks(bulk::MAX_LOOKUP).map(|part| bulk::encode_fingerprints(KeyId::PLAIN, part)).collect();
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| connect(daemon)).collect();
    let answer = std::cell::Cell::new(0);
    let (ratio, http, tcp) = in_turns(
        || {
            let got = side_by_side(&mut connections, &bodies, |connection, body| {
                let mut bitmap = Vec::new();
                connection.ask("POST", "/v1/content/lookup", bulk::BITMAP, body, |piece| {
                    bitmap.extend_from_slice(piece);
                });
                let held = bulk::decode_bitmap(bulk::MAX_LOOKUP as u32, &bitmap).expect("a bitmap");
                assert_eq!(held.len() as usize, bulk::MAX_LOOKUP / 2);
                bitmap.len()
            });
            answer.set(got[0]);
        },
        || plain::exchange(&bodies, answer.get()),
    );
    let how = format!(
        "{:.1} million a second over {:.1}: {} fingerprints, {} a request, every other one held, {CONNECTIONS} connections, against as many bytes there and back over plain TCP",
        asked.len() as f64 / http / 1e6,
        asked.len() as f64 / tcp / 1e6,
        asked.len(),
        bulk::MAX_LOOKUP
    );
    figures.add(NAMES[2], ratio, "ratio", Bound::AtLeast(0.5), how);
}

/// Asks for all of `bodies`, each connection for its share at the same time.
fn side_by_side(
    connections: &mut [Connection],
    bodies: &[Vec<u8>],
    ask: impl Fn(&mut Connection, &[u8]) -> usize + Sync,
) -> Vec<usize> {
    let share = bodies.len().div_ceil(connections.len());
    std::thread::scope(|scope| {
        let ask = &ask;
        let threads: Vec<_> = connections
            .iter_mut()
            .zip(bodies.chunks(share))
            .map(|(connection, bodies)| {
                scope.spawn(move || bodies.iter().map(|body| ask(connection, body)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client does not panic")).collect()
    })
}
