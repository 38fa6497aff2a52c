//! The map that holds the marks of one VM: an array of 4096-byte elements, mapped into the daemon as a whole.
//!
//! ```text
//! element 0           Header: where everything else is; written once, before the programs can see the map
//! element 1           Flags: things that could not be said with a page mark
//! tables              sorted extents that turn an address, a slot offset or a file offset into a page number
//! written summary     a byte for each 512 pages         ┐
//! written marks       a byte for each page              │ bytes, because a plain store of a byte needs no
//! discarded summary   a byte for each 512 pages         │ read-modify-write: programs on all CPUs and the daemon
//! discarded chunks    a byte: all 512 pages discarded   │ can store to neighbours at once and none is lost
//! discarded marks     a byte for each page              ┘
//! ```
//!
//! Elements are big because the kernel rounds each element up to 8 bytes: an array of single bytes would be eight times
//! as large. The array is one piece of memory, so the byte of page `p` is simply byte `p` of its bitmap.

use core::mem::size_of;

/// log2 of [`ELEMENT`].
pub const ELEMENT_SHIFT: u32 = 12;
/// Bytes in an element.
pub const ELEMENT: usize = 1 << ELEMENT_SHIFT;
/// log2 of [`CHUNK`].
pub const CHUNK_SHIFT: u32 = 9;
/// Pages that share a summary byte.
pub const CHUNK: u32 = 1 << CHUNK_SHIFT;
/// log2 of the page size every page number is counted in.
pub const PAGE_SHIFT: u32 = 12;
/// log2 of [`EXTENTS_PER_ELEMENT`].
pub const EXTENTS_SHIFT: u32 = 8;
/// Extents in an element.
pub const EXTENTS_PER_ELEMENT: u32 = 1 << EXTENTS_SHIFT;
/// log2 of [`MAX_EXTENTS`]: the steps of a search.
pub const MAX_EXTENTS_SHIFT: u32 = 12;
/// Most extents in a table: a search is a bounded loop, which is what the kernel's verifier asks for.
pub const MAX_EXTENTS: u32 = 1 << MAX_EXTENTS_SHIFT;
/// Most RAM files of a VM that can be told apart.
pub const MAX_FILES: usize = 32;
/// Address spaces a KVM VM can have: the second is system management mode.
pub const ADDRESS_SPACES: usize = 2;
/// log2 of the pages a file may have in the file table: its keys are `file << FILE_SHIFT | page offset`.
pub const FILE_SHIFT: u32 = 40;
/// The slot table's keys are `slot << SLOT_SHIFT | page offset`.
pub const SLOT_SHIFT: u32 = 32;
/// Flags the programs' array of marks is created with: mapped by the daemon, and of a size of its own in each VM.
pub const MAP_FLAGS: usize = (1 << 10/* BPF_F_MMAPABLE */) | (1 << 12/* BPF_F_INNER_MAP */);
/// Most VMs tracked at a time.
pub const MAX_VMS: usize = 4096;
/// Most RAM files of all VMs together whose mapping by other processes is watched for.
pub const MAX_RAM_FILES: usize = 4 * MAX_VMS;

/// Consecutive keys that stand for consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Extent {
    /// First key, counted in pages.
    pub start: u64,
    /// Keys (and pages) in it.
    pub pages: u32,
    /// Page number of the first.
    pub first_page: u32,
}

/// A sorted run of [`Extent`]s that do not overlap, from the start of an element on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Table {
    /// First element.
    pub element: u32,
    /// Number of extents, at most [`MAX_EXTENTS`].
    pub count: u32,
}

/// A RAM file, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct File {
    /// Inode number.
    pub inode: u64,
    /// Device in the kernel's own encoding (`major << 20 | minor`), which is not that of `st_dev`.
    pub device: u32,
    /// Pads to a multiple of 8.
    pub unused: u32,
}

/// Element 0. Never changes while a program can see it: a VM whose layout changes gets a new map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// `struct kvm *` the GPA and slot tables were made from, 0 if unknown; only ever read from, and only through
    /// `bpf_probe_read_kernel`, so a VM that has gone is no danger.
    pub kvm: u64,
    /// Generation of the memslots, for each address space, when the tables were made.
    pub generations: [u64; ADDRESS_SPACES],
    /// Host virtual addresses.
    pub hva: Table,
    /// Guest physical addresses, for each address space.
    pub gpa: [Table; ADDRESS_SPACES],
    /// Slot and offset, as the dirty ring reports them.
    pub slots: Table,
    /// File and offset.
    pub files: Table,
    /// Pages of the VM.
    pub pages: u32,
    /// What the tables cannot answer: [`DOUBT_GPA`] …
    pub doubts: u32,
    /// Element of the summary of the written marks.
    pub written_summary: u32,
    /// Element of the written marks.
    pub written_marks: u32,
    /// Element of the summary of the discarded marks.
    pub discarded_summary: u32,
    /// Element of the discarded chunks.
    pub discarded_chunks: u32,
    /// Element of the discarded marks.
    pub discarded_marks: u32,
    /// Entries used in `file`.
    pub file_count: u32,
    /// RAM files; the index is the upper part of the keys in `files`.
    pub file: [File; MAX_FILES],
}

/// [`Header::doubts`]: guest physical addresses and slots are ambiguous or incomplete (several KVM VMs in the process, more slots than
/// a table holds, a page in two places); any event by them is an overflow.
pub const DOUBT_GPA: u32 = 1;
/// [`Header::doubts`]: the HVA table is incomplete; any fault is an overflow.
pub const DOUBT_HVA: u32 = 2;
/// [`Header::doubts`]: the file table is ambiguous or incomplete; any discard by file is a discard of everything.
pub const DOUBT_FILES: u32 = 4;

/// Element 1: bytes the programs set to 1 and the daemon swaps back to 0. Each in a cache line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Flags {
    /// A write could not be mapped to a page: any page may have been written.
    pub overflowed: u8,
    /// Pads to a cache line.
    pub unused0: [u8; 63],
    /// A discard could not be mapped to pages: any page may have been discarded.
    pub discards_overflowed: u8,
    /// Pads to a cache line.
    pub unused1: [u8; 63],
    /// KVM's memslots are not those of the header any more.
    pub layout_stale: u8,
    /// Pads to a cache line.
    pub unused2: [u8; 63],
    /// Another process is mapping one of the RAM files writable.
    pub foreign_mapping: u8,
    /// Pads to a cache line.
    pub unused3: [u8; 63],
    /// The VMM has emptied KVM's dirty ring: what was in it is being protected by KVM again.
    pub ring_reset: u8,
    /// Pads to a cache line.
    pub unused4: [u8; 63],
}

/// Element of the [`Header`].
pub const HEADER_ELEMENT: u32 = 0;
/// Element of the [`Flags`].
pub const FLAGS_ELEMENT: u32 = 1;
/// First element that is free for tables.
pub const FIRST_TABLE_ELEMENT: u32 = 2;

const _: () = {
    assert!(size_of::<Extent>() << EXTENTS_SHIFT == ELEMENT);
    assert!(size_of::<Header>() <= ELEMENT);
    assert!(size_of::<Header>() == 24 + 5 * 8 + 8 * 4 + MAX_FILES * 16); // no hidden padding
    assert!(size_of::<Flags>() == 5 * 64);
    assert!(CHUNK_SHIFT <= ELEMENT_SHIFT);
};
