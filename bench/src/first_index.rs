//! The first index of a 2 GiB RAM file, and what the daemon weighs after that of 16 GiB. Two baselines, with as many threads: hashing as much
//! memory that is mapped already, and mapping and hashing the same RAM file, which is the least that any reader of it has to do.

use std::{fs, time::Instant};

use indexer::fingerprint::{Hasher, Page};
use memdex_tests::Scratch;

use crate::{
    daemon::{self, HASH_THREADS},
    figure::{Bound, Figures, median},
    plain,
    vmm::{Vmm, fill},
};

const MIB: usize = 2048;
const PAGES: usize = MIB << 8;
const ROUNDS: usize = 3;
/// MiB of the guest with which the daemon is weighed, and what everything else is left.
const LARGE: usize = 16 << 10;
const ROOM: usize = 1 << 10;

pub(crate) fn measure(figures: &mut Figures) {
    eprintln!("first index of {MIB} MiB, every page different, {ROUNDS} rounds");
    let (mut over_hash, mut over_plain) = (Vec::new(), Vec::new());
    let (mut indexing, mut hashing, mut plain, mut weights) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let seconds = hash_as_much();
        let scratch = Scratch::new("bench-index");
        let vmm = Vmm::start(&scratch, "vmm", MIB, 0, round as u64 + 1);
        let read = plain::seconds(&plain::ram_file(vmm.pid()), PAGES, HASH_THREADS);
        let mut daemon = daemon::start(&scratch, "daemon", &format!("*-{}", vmm.pid()));
        let vm = daemon::indexed(&daemon, vmm.pid());
        assert_eq!(vm.pages.current, PAGES as u64, "every page is known: {:?}", vm.pages);
        let elapsed = vm.indexed.elapsed_ms as f64 / 1e3;
        over_hash.push(seconds / elapsed);
        over_plain.push(read / elapsed);
        plain.push(rate(read));
        indexing.push(rate(elapsed));
        hashing.push(rate(seconds));
        weights.push(daemon::resident(daemon.process().pid()));
    }
    let indexed = format!("{:.2} GB/s from attaching to the last page", median(indexing));
    let how = format!("{indexed}, {:.2} GB/s hashing, {HASH_THREADS} hashing thread each", median(hashing));
    figures.add("first_index_over_hash", median(over_hash), "ratio", Bound::AtLeast(0.9), how);
    let how = format!(
        "{indexed}, {:.2} GB/s mapping and hashing, {HASH_THREADS} hashing thread each",
        median(plain)
    );
    figures.add("first_index_over_file_hash", median(over_plain), "ratio", Bound::AtLeast(0.8), how);
    weigh(figures, median(weights));
}

/// What the daemon weighs with a large guest: of a small one, the program itself is the greater part. `small`: bytes with that.
fn weigh(figures: &mut Figures, small: f64) {
    let mib = largest();
    eprintln!("the daemon's weight with {mib} MiB, every page different");
    let scratch = Scratch::new("bench-weight");
    let vmm = Vmm::start(&scratch, "vmm", mib, 0, 1);
    let mut daemon = daemon::start(&scratch, "daemon", &format!("*-{}", vmm.pid()));
    let pages = mib << 8;
    let vm = daemon::indexed(&daemon, vmm.pid());
    assert_eq!(vm.pages.current, pages as u64, "every page is known: {:?}", vm.pages);
    let weight = daemon::resident(daemon.process().pid());
    let fits = if mib < LARGE { ", the most that fits here" } else { "" };
    let how = format!(
        "{:.1} MiB resident over {pages} pages ({} GiB{fits}), all different; {:.1} bytes with {} GiB",
        weight / f64::from(1 << 20),
        mib >> 10,
        small / PAGES as f64,
        MIB >> 10
    );
    figures.add("daemon_bytes_per_page", weight / pages as f64, "bytes", Bound::AtMost(48.0), how);
}

/// MiB of the largest guest, up to [`LARGE`], that fits into memory with all that is kept of it.
fn largest() -> usize {
    let available = available_mib();
    let fits = |mib: &usize| mib + mib / 50 + ROOM <= available;
    std::iter::successors(Some(LARGE), |mib| Some(mib / 2))
        .find(|mib| fits(mib) || *mib == MIB)
        .unwrap_or(MIB)
}

/// What the kernel says is available, in MiB.
pub(crate) fn available_mib() -> usize {
    let text = fs::read_to_string("/proc/meminfo").expect("the kernel tells of its memory");
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = kib.expect("it says what is available").trim().trim_end_matches(" kB");
    kib.parse::<usize>().expect("a number") >> 10
}

/// Seconds to hash as much memory in place, with as many threads.
fn hash_as_much() -> f64 {
    let mut pages: Vec<Page> = vec![[0; 4096]; PAGES];
    for (number, page) in pages.iter_mut().enumerate() {
        fill(page, number as u64, 7);
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for part in pages.chunks(PAGES.div_ceil(HASH_THREADS)) {
            scope.spawn(move || {
                let (mut hasher, mut out) = (Hasher::new(), Vec::new());
                for piece in part.chunks(1024) {
                    out.clear();
                    hasher.fingerprint(piece, &mut out);
                    std::hint::black_box(&out);
                }
            });
        }
    });
    begun.elapsed().as_secs_f64()
}

fn rate(seconds: f64) -> f64 {
    (MIB << 20) as f64 / seconds / 1e9
}
