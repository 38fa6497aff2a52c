//! What a host costs that is larger than the machine at hand: bytes, and time to build, look up and compare.
//!
//! Owns synthetic hosts of growing size. The structures are the daemon's own (maps, reverse index, pictures), what is in them is made up: VMs of 16 GiB of which all pages differ. What a host of 1 TiB would
//! show is computed from the two largest that fit, and said to be.

use std::{
    fmt::{self, Write as _},
    fs,
    hint::black_box,
    path::Path,
    sync::Arc,
    time::Instant,
};

use indexer::{
    map::{Content, ContentIndex, Layout, MapId, PageMap},
    picture::{build, peers::PeerPicture},
};
use memdex_wire::{
    page::PageState,
    picture::{Change, Position},
};

use crate::{
    daemon::resident,
    diff_known::content,
    figure::{Bound, Figures, median},
    first_index::available_mib,
};

pub(crate) const NAMES: [&str; 4] =
    ["large_host_bytes_per_page", "large_host_build_mpps", "large_host_lookup_mps", "large_host_diff_ms"];

/// Mi pages of each host. Each page takes some 50 bytes while a peer's picture is made.
const SIZES: [u64; 4] = [4, 8, 16, 64];
const BYTES_EACH: u64 = 64;
/// A host of 1 TiB.
const TIB: u64 = 256;
/// Pages of each VM: 16 GiB.
const VM: u32 = 4 << 20;
const BATCH: u32 = 4096;
/// Contents that are looked up, half of which the host has.
const LOOKED_UP: u64 = 2 << 20;
/// Pages of the VM, and contents of the peer, that change before each diff.
const CHANGES: u32 = 1000;
const ROUNDS: u32 = 5;

/// A host of one size, as measured or as computed.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Mi pages.
    size: f64,
    build_mpps: f64,
    lookup_mps: f64,
    diff_ms: f64,
    bytes: f64,
    index_bytes: f64,
    computed: bool,
}

pub(crate) fn measure(figures: &mut Figures, docs: Option<&Path>) {
    let fits = |size: &&u64| **size * BYTES_EACH < available_mib() as u64;
    let rows: Vec<Row> = SIZES.iter().filter(fits).map(|size| host(*size)).collect();
    let [.., before, last] = rows[..] else {
        eprintln!("not enough memory for two synthetic hosts: left out");
        return;
    };
    let tib = computed(&before, &last);
    let table = Table(&rows, &tib);
    println!("{table}");
    if let Some(folder) = docs {
        fs::write(folder.join("large-host.md"), page(&table)).expect("the page can be written");
    }
    let how = |what: &str, of_tib: f64| {
        format!("{what}; {} GiB, all pages different; 1 TiB, computed: {of_tib:.2}", last.size * 4.0)
    };
    let what = format!("maps and reverse index ({:.2} of it) as resident memory", last.index_bytes);
    figures.add(NAMES[0], last.bytes, "bytes", Bound::AtMost(46.0), how(&what, tib.bytes));
    let what = "pages published and put into the index, million a second, one thread";
    figures.add(NAMES[1], last.build_mpps, "M/s", Bound::AtLeast(0.5), how(what, tib.build_mpps));
    let what = "contents looked up and checked in the map, half of them there, million a second, one thread";
    figures.add(NAMES[2], last.lookup_mps, "M/s", Bound::AtLeast(0.5), how(what, tib.lookup_mps));
    let what = "a VM of 16 GiB against a peer of the same size, after 1000 changes on both sides";
    figures.add(NAMES[3], last.diff_ms, "ms", Bound::AtMost(5.0), how(what, tib.diff_ms));
}

/// Builds a host and measures it.
fn host(size: u64) -> Row {
    eprintln!("a synthetic host of {} GiB", size * 4096 / 1024);
    let pages = size << 20;
    // What was freed before would be used again, and not be seen as growth.
    indexer::heap::give_back();
    let before = resident(std::process::id());
    let index = ContentIndex::new().expect("the kernel has random bytes");
    let begun = Instant::now();
    let mut maps: Vec<PageMap> = (0..pages / u64::from(VM)).map(|vm| fill(vm, &index)).collect();
    let build = begun.elapsed().as_secs_f64();
    let bytes = resident(std::process::id()) - before;
    let index_bytes = index.statistics().bytes as f64;
    assert_eq!(index.statistics().entries, pages, "every content has a place");

    let (mut places, mut found) = (Vec::new(), 0);
    let begun = Instant::now();
    for n in 0..LOOKED_UP {
        // Anywhere, and beyond the last content every other time.
        let wanted = content(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % pages + n % 2 * pages);
        places.clear();
        index.candidates(wanted.prefix(), &mut places);
        found += u64::from(places.iter().any(|place| {
            let page = maps[place.map.0 as usize].page(place.page);
            page.held == PageState::Current && page.fingerprint == Some(wanted)
        }));
    }
    let lookup = begun.elapsed().as_secs_f64();
    assert_eq!(black_box(found), LOOKED_UP / 2, "what there is, is found");

    let diff_ms = diff(&mut maps[0], pages, &index);
    Row {
        size: size as f64,
        build_mpps: pages as f64 / build / 1e6,
        lookup_mps: LOOKED_UP as f64 / lookup / 1e6,
        diff_ms,
        bytes: bytes / pages as f64,
        index_bytes: index_bytes / pages as f64,
        computed: false,
    }
}

fn fill(vm: u64, index: &ContentIndex) -> PageMap {
    let mut map = PageMap::new(Arc::new(Layout::one_region(VM)));
    for first in (0..VM).step_by(BATCH as usize) {
        let numbers = (first..first + BATCH).map(|page| vm * u64::from(VM) + u64::from(page));
        publish(&mut map, vm, first, numbers, index);
    }
    map
}

fn publish(map: &mut PageMap, vm: u64, first: u32, numbers: impl Iterator<Item = u64>, index: &ContentIndex) {
    let contents: Vec<_> = numbers.map(|number| Some(Content::Fingerprint(content(number)))).collect();
    let mut changes = Vec::new();
    map.publish(map.next_generation(), true, first, &contents, &mut changes);
    index.follow(MapId(vm as u32), &changes);
}

/// Milliseconds of a diff against a peer as large as the host, which holds half of the VM.
fn diff(map: &mut PageMap, pages: u64, index: &ContentIndex) -> f64 {
    let half = u64::from(VM) / 2;
    let picture = build(0x0123_4567_89AB_CDEF, pages, |each| {
        (0..half).for_each(|n| each(&content(n)));
        (half..pages).for_each(|n| each(&content(1 << 40 | n)));
    });
    let peer = PeerPicture::new(2 * pages);
    peer.replace(picture, Position { epoch: 1, sequence: 0 });
    let _ = peer.apply(&[], Position { epoch: 1, sequence: 0 }, index);
    let first = peer.diff(MapId(0), &map.snapshot()).expect("it was just heard");
    assert!(first.pages.matched >= half, "{:?}", first.pages);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        for n in 0..CHANGES {
            let page = (n * 4_159 + round) % VM;
            let number = 1 << 60 | u64::from(round) << 32 | u64::from(page);
            publish(map, 0, page, std::iter::once(number), index);
        }
        let told: Vec<Change> = (0..u64::from(CHANGES))
            .map(|n| Change::new(content(n * 4_153 + u64::from(round)).prefix(), n % 2 == 0))
            .collect();
        let _ = peer.apply(&told, Position { epoch: 1, sequence: u64::from(round) }, index);
        let begun = Instant::now();
        let known = peer.diff(MapId(0), &map.snapshot()).expect("it was just heard");
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        assert_eq!(known.pages.matched + known.pages.missing, u64::from(VM));
    }
    median(times)
}

/// What a host of 1 TiB would show: what each further page takes is what it took from the one size to the other; the time of a look-up grows by the
/// same with each doubling.
fn computed(before: &Row, last: &Row) -> Row {
    let size = TIB as f64;
    let line = |a: f64, b: f64| b + (b - a) / (last.size - before.size) * (size - last.size);
    let all = |of: fn(&Row) -> f64| line(of(before) * before.size, of(last) * last.size) / size;
    let lookup = 1.0 / last.lookup_mps
        + (1.0 / last.lookup_mps - 1.0 / before.lookup_mps).max(0.0) / (last.size / before.size).log2()
            * (size / last.size).log2();
    Row {
        size,
        build_mpps: size / line(before.size / before.build_mpps, last.size / last.build_mpps),
        lookup_mps: 1.0 / lookup,
        diff_ms: line(before.diff_ms, last.diff_ms).max(last.diff_ms),
        bytes: all(|row| row.bytes),
        index_bytes: all(|row| row.index_bytes),
        computed: true,
    }
}

struct Table<'a>(&'a [Row], &'a Row);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| guests | pages | built, M pages/s | looked up, M/s | diff of 16 GiB | bytes a page | of these the index | |"
        )?;
        writeln!(f, "|--:|--:|--:|--:|--:|--:|--:|---|")?;
        for row in self.0.iter().chain([self.1]) {
            let Row { size, build_mpps, lookup_mps, diff_ms, bytes, index_bytes, computed } = row;
            let how = if *computed { "computed" } else { "measured" };
            writeln!(
                f,
                "| {} GiB | {size} Mi | {build_mpps:.2} | {lookup_mps:.2} | {diff_ms:.2} ms | {bytes:.2} | {index_bytes:.2} | {how} |",
                size * 4.0
            )?;
        }
        Ok(())
    }
}

fn page(table: &Table<'_>) -> String {
    let mut text = String::from("# Large hosts, measured\n\n");
    let _ = write!(
        text,
        "`cargo xtask bench --only large_host --docs docs` writes this page anew.

The daemon's own structures in one process, filled with made up contents: VMs of 16 GiB of which every page differs, one thread. *Built*: pages published in a map and put into the reverse index, without reading or hashing
them. *Looked up*: contents, half of which the host has, in the index and in the map. *Diff*: one VM against a peer that is followed and holds as much as the host, half of the VM among it, after {CHANGES} pages of the VM and as many contents of the peer have
changed. *Bytes a page*: maps and index, resident; the daemon adds two bytes of marks for each page, and itself.

{table}
*Computed*: every further page takes what it took from the last but one size to the last; a look-up takes as much longer with each doubling.
"
    );
    text
}
