//! Which mappings are guest RAM. Owns the rules for QEMU and for other KVM VMMs, and the order of regions; never
//! opens anything: it is told the mappings, the memory slots and what the command line promises.

use std::ops::Range;

use crate::{
    units::{Hva, MAX_PAGES},
    vm::{
        cmdline::{Backend, BackendKind, Options},
        descriptor::{Backing, Memslot, Region},
        files::{PAGE, Storage},
        kvm::FOUR_GIB,
        maps::FileKey,
        spans::{Kind, Span, anonymous_runs},
    },
};

/// Smallest shared mapping of QEMU's that is taken for RAM without the command line saying so.
const SMALLEST_HOTPLUG: u64 = 1 << 20;
/// Smallest shared mapping of another VMM's that is taken for RAM when the memory slots are not known.
const SMALLEST_GUESS: u64 = 64 << 10;
/// RAM that QEMU allocates itself is aligned for huge pages.
const HUGE_PAGE: u64 = 2 << 20;
/// Most regions of a VM; more are nonsense.
const MAX_REGIONS: usize = 1024;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Guest RAM.
    pub(crate) regions: Vec<Region>,
    /// The files behind shared regions, as `maps` numbers them.
    pub(crate) files: Vec<FileKey>,
    /// RAM that the command line promises is still missing: the VMM may be starting.
    pub(crate) incomplete: bool,
    /// What is doubtful about it.
    pub(crate) doubts: Vec<String>,
}

/// RAM of a QEMU. In order: what the command line names, main memory first; then what was plugged in later.
pub(crate) fn of_qemu(options: &Options, spans: &[Span], slots: &[Memslot]) -> Found {
    let mut found = Found::default();
    let mut claimed = vec![false; spans.len()];
    for backend in &options.backends {
        match find(backend, spans, slots, &claimed) {
            Some(piece) => {
                found
                    .add(&spans[piece.start], spans[piece.start].range.start..spans[piece.end - 1].range.end);
                claimed[piece].fill(true);
            }
            None => found.incomplete = true,
        }
    }
    for backend in &options.not_ram {
        if let Some(piece) = find(backend, spans, slots, &claimed) {
            claimed[piece].fill(true);
        }
    }
    for (at, span) in spans.iter().enumerate() {
        if !claimed[at] && plugged_in(span, slots) {
            let range = if span.kind == Kind::Anonymous {
                hull(slots, &span.range, FOUR_GIB)
            } else {
                Some(span.range.clone())
            };
            if let Some(range) = range {
                found.add(span, range);
            }
        }
    }
    if found.regions.is_empty() && !options.no_machine {
        found.doubts.push(
            "none of this QEMU's mappings could be recognised as guest RAM, so its pages are not known"
                .to_owned(),
        );
    }
    found
}

/// RAM of any other KVM VMM: what its memory slots cover, in the order of guest addresses. Without them (`None`) its
/// shared memory is the best guess.
pub(crate) fn of_kvm(spans: &[Span], slots: Option<&[Memslot]>) -> Found {
    let mut found = Found::default();
    let Some(slots) = slots else {
        for span in spans.iter().filter(|span| guessed(span)) {
            found.add(span, span.range.clone());
        }
        if found.regions.is_empty() {
            found.doubts.push(
                "KVM's memory slots could not be read and the VMM maps no shared memory, so its guest RAM was not found; \
                 let memdexd load its eBPF programs"
                    .to_owned(),
            );
        }
        return found;
    };
    let mut pieces: Vec<(u64, usize, Range<u64>)> = Vec::new();
    for (at, span) in spans.iter().enumerate().filter(|(_, span)| span.kind != Kind::Anonymous) {
        if let Some(gpa) = lowest_gpa(slots, &span.range) {
            pieces.push((gpa, at, span.range.clone()));
        }
    }
    for run in anonymous_runs(spans) {
        let range = spans[run.start].range.start..spans[run.end - 1].range.end;
        if let (Some(gpa), Some(hull)) = (lowest_gpa(slots, &range), hull(slots, &range, 0)) {
            pieces.push((gpa, run.start, hull));
        }
    }
    pieces.sort_by_key(|(gpa, at, _)| (*gpa, *at));
    for (_, at, range) in pieces {
        found.add(&spans[at], range);
    }
    if found.regions.is_empty() {
        found
            .doubts
            .push("KVM knows no writable guest memory of this VMM, so it has no pages to know".to_owned());
    }
    found
}

/// Puts regions that were there before in their old places, the others behind them.
pub(crate) fn keep_order(mut found: Vec<Region>, before: &[Region]) -> Vec<Region> {
    let mut ordered = Vec::with_capacity(found.len());
    for old in before {
        if let Some(at) = found.iter().position(|new| same_place(old, new)) {
            ordered.push(found.remove(at));
        }
    }
    ordered.append(&mut found);
    ordered
}

/// RAM files that the VMM has mapped writable in another place as well: a write there sets no mark and no bit in the page table of the first.
pub(crate) fn mapped_elsewhere(spans: &[Span], regions: &[Region]) -> Vec<String> {
    let mut doubts = Vec::new();
    for region in regions {
        let Backing::SharedFile { device, inode, offset, .. } = region.backing else { continue };
        let other = |span: &&Span| {
            let same_file = span.kind == Kind::Shared
                && span.facts.is_some_and(|facts| (facts.device, facts.inode) == (device, inode));
            let here = span.range.start.wrapping_sub(span.offset) == region.start.0.wrapping_sub(offset);
            let overlap = span.offset < offset.saturating_add(region.len)
                && offset < span.offset.saturating_add(span.len());
            same_file && !here && overlap
        };
        if spans.iter().any(|span| other(&span)) {
            doubts.push(format!(
                "the VMM has mapped RAM file {} in a second place, and what is written there is not seen in the first",
                region.name
            ));
        }
    }
    doubts
}

fn same_place(old: &Region, new: &Region) -> bool {
    let overlap = old.start < new.end() && new.start < old.end();
    match (&old.backing, &new.backing) {
        (
            Backing::SharedFile { device, inode, offset, .. },
            Backing::SharedFile { device: device2, inode: inode2, offset: offset2, .. },
        ) => (device, inode) == (device2, inode2) && (overlap || offset == offset2),
        (Backing::PrivateFile { path }, Backing::PrivateFile { path: path2 }) => path == path2 && overlap,
        (Backing::Anonymous, Backing::Anonymous) => overlap,
        _ => false,
    }
}

/// The spans that hold a backend: one, or several neighbours for anonymous memory.
fn find(backend: &Backend, spans: &[Span], slots: &[Memslot], claimed: &[bool]) -> Option<Range<usize>> {
    let free = || spans.iter().enumerate().filter(|(at, _)| !claimed[*at]);
    let one = |at: usize| at..at + 1;
    let shared_memory =
        |span: &Span| span.kind == Kind::Shared && span.is_memory() && span.fits(backend.size);
    match &backend.kind {
        BackendKind::File { path, offset } => free()
            .filter(|(_, span)| span.kind != Kind::Anonymous)
            .filter_map(|(at, span)| {
                use std::os::unix::ffi::OsStrExt as _;
                let likeness = likeness(span, path.as_os_str().as_bytes(), backend.size)?;
                Some(((likeness, span.offset == *offset, span.fits(backend.size)), at))
            })
            .max_by_key(|(score, at)| (*score, std::cmp::Reverse(*at)))
            .map(|(_, at)| one(at)),
        // Inode numbers of memfds grow as they are made, so equal sizes are told apart by the order of their making.
        BackendKind::Memfd => free()
            .filter(|(_, span)| span.path() == b"/memfd:memory-backend-memfd" && span.fits(backend.size))
            .min_by_key(|(_, span)| span.key)
            .map(|(at, _)| one(at)),
        BackendKind::Ram if backend.share => free()
            .filter(|(_, span)| shared_memory(span))
            .min_by_key(|(_, span)| (span.path() != b"/dev/zero", span.key))
            .map(|(at, _)| one(at)),
        BackendKind::Ram => anonymous_of_size(backend.size, spans, slots, claimed).or_else(|| {
            // Newer QEMUs can be told to make all RAM shareable.
            free().find(|(_, span)| shared_memory(span)).map(|(at, _)| one(at))
        }),
    }
}

/// How sure it is that a span shows the file at `path`, or one that QEMU made in the folder `path`. The paths need not
/// be equal: QEMU's may be relative, or go through a link or another mount namespace.
fn likeness(span: &Span, path: &[u8], size: u64) -> Option<u8> {
    let (folder, name) = split_path(span.path());
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if span.path() == path && !path.is_empty() {
        Some(3)
    } else if name.starts_with(b"qemu_back_mem.") && folder == path {
        Some(2)
    } else if name.starts_with(b"qemu_back_mem.") && span.fits(size) {
        Some(1)
    } else {
        (name == split_path(path).1 && !name.is_empty() && span.fits(size)).then_some(1)
    }
}

fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Anonymous memory of exactly this size. QEMU aligns RAM for huge pages and puts a guard page behind it; memory slots
/// settle it under KVM.
fn anonymous_of_size(size: u64, spans: &[Span], slots: &[Memslot], claimed: &[bool]) -> Option<Range<usize>> {
    let size = size.checked_next_multiple_of(PAGE).filter(|size| *size > 0)?;
    let mut best: Option<((bool, bool, bool), Range<usize>)> = None;
    for run in anonymous_runs(spans) {
        for first in run.clone() {
            let start = spans[first].range.start;
            let last = (first..run.end).take_while(|&at| {
                !claimed[at] && spans[at].plain && !spans[at].execute && spans[at].range.end - start <= size
            });
            let Some(last) = last.last().filter(|&last| spans[last].range.end - start == size) else {
                continue;
            };
            let covered = lowest_gpa(slots, &(start..start + size)).is_some();
            let score = (covered, spans[last].guarded, start.is_multiple_of(HUGE_PAGE));
            if best.as_ref().is_none_or(|(other, _)| score > *other) {
                best = Some((score, first..last + 1));
            }
        }
    }
    best.map(|(_, piece)| piece)
}

/// Whether a mapping of QEMU's that the command line does not name is RAM that was plugged in later.
fn plugged_in(span: &Span, slots: &[Memslot]) -> bool {
    // Devices' memory (a graphics card's) has slots as well, but below 4 GiB.
    let high = || {
        slots.iter().any(|slot| {
            slot.writable() && slot.gpa.0 >= FOUR_GIB && slot.overlaps(span.range.start, span.range.end)
        })
    };
    match span.kind {
        Kind::Shared if known_as_something_else(span.path()) => high(),
        Kind::Shared => {
            span.len() >= SMALLEST_HOTPLUG && span.is_memory() || lowest_gpa(slots, &span.range).is_some()
        }
        Kind::Private => split_path(span.path()).1.starts_with(b"qemu_back_mem.") || high(),
        Kind::Anonymous => span.plain && !span.execute && high(),
    }
}

/// Shared memory of QEMU's that is no backend: logs of vhost, code buffers, pictures, kernel objects without a folder.
fn known_as_something_else(path: &[u8]) -> bool {
    if path.starts_with(b"/memfd:") {
        return path != b"/memfd:memory-backend-memfd";
    }
    path != b"/dev/zero" && split_path(path).0.is_empty()
}

/// Whether shared memory of some VMM may well be guest RAM.
fn guessed(span: &Span) -> bool {
    const OTHERS: &[&[u8]] = &[
        b"vhost-",
        b"tcg-jit",
        b"pulseaudio",
        b"wayland",
        b"doublemapper",
        b"xshmfence",
        b"pipewire",
        b"mesa",
        b"jit",
    ];
    let something_else = match span.path().strip_prefix(b"/memfd:") {
        Some(name) => OTHERS.iter().any(|other| name.starts_with(other)),
        None => span.path() != b"/dev/zero" && split_path(span.path()).0.is_empty(),
    };
    span.kind == Kind::Shared && span.is_memory() && span.len() >= SMALLEST_GUESS && !something_else
}

fn lowest_gpa(slots: &[Memslot], range: &Range<u64>) -> Option<u64> {
    let inside =
        slots.iter().filter(|slot| slot.writable() && slot.len > 0 && slot.overlaps(range.start, range.end));
    inside.map(|slot| slot.gpa.0).min()
}

/// From the first to the last byte of `range` that a writable slot at or above `lowest` covers.
fn hull(slots: &[Memslot], range: &Range<u64>, lowest: u64) -> Option<Range<u64>> {
    let inside = || {
        slots.iter().filter(|slot| {
            slot.writable() && slot.len > 0 && slot.gpa.0 >= lowest && slot.overlaps(range.start, range.end)
        })
    };
    let start = inside().map(|slot| slot.hva.0.max(range.start)).min()? / PAGE * PAGE;
    let end = inside().map(|slot| slot.hva_end().min(range.end)).max()?.next_multiple_of(PAGE);
    Some(start..end)
}

impl Found {
    fn add(&mut self, span: &Span, range: Range<u64>) {
        let pages: u64 = self.regions.iter().map(Region::pages).sum();
        let len = range.end - range.start;
        if self.regions.len() >= MAX_REGIONS || pages + len / PAGE > MAX_PAGES {
            const TOO_MUCH: &str =
                "the VM has more memory than memdexd counts (8 TiB in 1024 regions); the rest is left out";
            if !self.doubts.iter().any(|doubt| doubt == TOO_MUCH) {
                self.doubts.push(TOO_MUCH.to_owned());
            }
            return;
        }
        let name = region_name(span);
        let path = || {
            use std::os::unix::ffi::OsStrExt as _;
            std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&span.path))
        };
        let facts = span.facts;
        let backing = match (span.kind, facts) {
            (Kind::Shared, Some(facts)) => {
                self.files.push(span.key);
                let trackable = facts.storage.is_memory();
                if !trackable {
                    self.doubts.push(format!(
                        "RAM file {name} is not on tmpfs or hugetlbfs, where writes to it can be tracked; put it on /dev/shm"
                    ));
                }
                let offset = span.offset + (range.start - span.range.start);
                Backing::SharedFile {
                    device: facts.device,
                    inode: facts.inode,
                    offset,
                    path: path(),
                    trackable,
                }
            }
            (Kind::Anonymous, _) | (_, None) => Backing::Anonymous,
            (Kind::Private, Some(_)) => Backing::PrivateFile { path: path() },
        };
        let huge = facts.filter(|facts| facts.storage == Storage::HugePages);
        let mapping_page_size = huge.map_or(PAGE, |facts| facts.page_size);
        self.regions.push(Region { name, start: Hva(range.start), len, backing, mapping_page_size });
    }
}

/// A name for people, of bounded length and without anything that could disturb a terminal.
fn region_name(span: &Span) -> String {
    let raw = match span.kind {
        Kind::Anonymous if span.path.is_empty() => b"anonymous",
        Kind::Anonymous => span.path.as_slice(),
        _ if span.path() == b"/dev/zero" => b"shared anonymous",
        _ if span.path.starts_with(b"/memfd:") => &span.path()[1..],
        _ => span.path(),
    };
    String::from_utf8_lossy(raw)
        .chars()
        .take(256)
        .map(|letter| if letter.is_control() { '_' } else { letter })
        .collect()
}

#[cfg(test)]
#[path = "regions_tests.rs"]
mod tests;
