//! The table: kinds of writes × witnesses. Data, and nothing else.

use crate::kinds::Kind;

/// Which witnesses the daemon may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Witness {
    /// Write protection and eBPF: what a daemon uses that is told nothing.
    All = 0,
    /// Write protection, no eBPF.
    WriteProtect = 1,
    /// eBPF, no write protection; the VMM has KVM's dirty ring on, and logs.
    DirtyRing = 2,
    /// Neither: everything is read again now and then.
    Rehash = 3,
    /// Soft-dirty bits and eBPF: what a daemon uses that is told nothing, on a kernel that has no `PAGEMAP_SCAN`.
    SoftDirty = 4,
}

/// What the guest's RAM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ram {
    Memfd,
    Anonymous,
    HugeTmpfs,
    Hugetlb,
}

/// What is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sees {
    /// The VM is exact, and the write is noticed at once: the page is stale, then has its new fingerprint.
    Exact,
    /// The same, but the VM is advisory for other reasons, and one of them holds these words.
    Known(&'static str),
    /// The VM is advisory for a reason with these words, and the write is *not* noticed at once: until memory is read again the map
    /// shows what was there before. A sync is right.
    Late(&'static str),
    /// The daemon does not find the memory: see `anonymous_memory_is_not_found_without_ebpf`.
    Nowhere,
    /// Nobody says: this kind of RAM is not tried with this witness.
    NotTried,
}

/// A kind of write and what is expected with each witness, in the order of [`Witness`].
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) rams: &'static [Ram],
    pub(crate) sees: [Sees; 5],
}

use Ram::{Anonymous, HugeTmpfs, Hugetlb, Memfd};
use Sees::{Exact, Known, Late, NotTried, Nowhere};

/// Why a VM without write protection is advisory.
pub(crate) const OUT: &str = "left out";
/// Why one without eBPF is.
const DISCARDS: &str = "the eBPF hooks on discards are not attached";
pub(crate) const FORK: &str = "is a fork of the VMM";
pub(crate) const FOREIGN: &str = "maps this VM's RAM writable";
const PINNED: &str = "io_uring with registered buffers";
/// Reasons that come and go with a row.
pub(crate) const TRANSIENT: [&str; 3] = [FORK, FOREIGN, PINNED];
const HUGE: &str = "in pages of 2048 KiB";

pub(crate) const TABLE: &[Row] = &[
    Row {
        kind: Kind::Guest,
        rams: &[Memfd, Anonymous, HugeTmpfs],
        sees: [Exact, Known(DISCARDS), Known(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::Vmm,
        rams: &[Memfd, Anonymous, HugeTmpfs],
        sees: [Exact, Known(DISCARDS), Late(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::Read,
        rams: &[Memfd, Anonymous, HugeTmpfs],
        sees: [Exact, Known(DISCARDS), Late(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::Uring,
        rams: &[Memfd, Anonymous],
        sees: [Exact, Known(DISCARDS), Late(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::PunchHole,
        rams: &[Memfd, HugeTmpfs],
        sees: [Exact, Late(DISCARDS), Known(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::Refilled,
        rams: &[Memfd, HugeTmpfs],
        sees: [Exact, Late(DISCARDS), Known(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::Collapsed,
        rams: &[HugeTmpfs],
        sees: [Exact, Late(DISCARDS), Known(OUT), Late(OUT), NotTried],
    },
    Row {
        kind: Kind::Split,
        rams: &[HugeTmpfs],
        sees: [Exact, Late(DISCARDS), Known(OUT), Late(OUT), NotTried],
    },
    Row {
        kind: Kind::MadviseRemove,
        rams: &[Memfd, HugeTmpfs],
        sees: [Exact, Late(DISCARDS), Known(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::MadviseDontneed,
        rams: &[Anonymous],
        sees: [Exact, Nowhere, Known(OUT), Nowhere, Exact],
    },
    Row {
        kind: Kind::DirectIo,
        rams: &[Memfd, Anonymous],
        sees: [Exact, Known(DISCARDS), Late(OUT), Late(OUT), Exact],
    },
    Row { kind: Kind::RegisteredBuffer, rams: &[Memfd], sees: [Late(PINNED); 5] },
    // The kernel clears no bits of private pages that are pinned: they stay stale, and a sync does not make them known.
    Row {
        kind: Kind::RegisteredBuffer,
        rams: &[Anonymous],
        sees: [Late(PINNED), Late(PINNED), Late(PINNED), Late(PINNED), NotTried],
    },
    Row {
        kind: Kind::Hotplugged,
        rams: &[Memfd, Anonymous],
        sees: [Exact, Known(DISCARDS), Known(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::AfterFork,
        rams: &[Memfd, Anonymous],
        sees: [Known(FORK), Known(FORK), Known(FORK), Late(FORK), Known(FORK)],
    },
    Row { kind: Kind::ByFork, rams: &[Memfd], sees: [Late(FORK); 5] },
    Row { kind: Kind::Foreign, rams: &[Memfd], sees: [Late(FOREIGN); 5] },
    Row {
        kind: Kind::MappedAgain,
        rams: &[Memfd],
        sees: [Exact, Known(DISCARDS), Known(OUT), Late(OUT), Exact],
    },
    Row {
        kind: Kind::MappedOther,
        rams: &[Memfd],
        sees: [Exact, Known(DISCARDS), Known(OUT), Known(OUT), Exact],
    },
    Row {
        kind: Kind::Relocated,
        rams: &[Memfd, Anonymous],
        sees: [Exact, Known(DISCARDS), Known(OUT), Known(OUT), Exact],
    },
    Row { kind: Kind::Replaced, rams: &[Anonymous], sees: [Exact, Nowhere, Late(OUT), Nowhere, Exact] },
    Row {
        kind: Kind::Guest,
        rams: &[Hugetlb],
        sees: [Late(HUGE), Late(HUGE), Known(HUGE), Late(HUGE), NotTried],
    },
    Row { kind: Kind::Vmm, rams: &[Hugetlb], sees: [Late(HUGE); 5] },
];
