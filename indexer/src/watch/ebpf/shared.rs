//! Memory and types shared with the eBPF programs: the mapping of a VM's map, with a safe face.
//!
//! Owns every access to the mapping. Never interprets a mark.
#![expect(unsafe_code, reason = "maps kernel memory that programs write to meanwhile")]

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
};

use indexer_common::{
    calls::{Calls, InFlight},
    marks::{ELEMENT, FLAGS_ELEMENT, File, Flags, HEADER_ELEMENT},
    offsets::Offsets,
    records::Record,
};
use rustix::mm::{MapFlags, ProtFlags};

use super::layout::Plan;

/// A value that crosses to the programs through aya, which asks for its marker trait.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T: Copy>(pub(super) T);

// SAFETY: a `repr(C)` struct of integers without padding (asserted beside it): any bytes are a value.
unsafe impl aya::Pod for Plain<Offsets> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<File> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Calls> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<InFlight> {}

/// A VM's map in the daemon's address space.
///
/// Every access is atomic, since programs store to single bytes at any time; the words the daemon reads eight bytes at once overlap these
/// bytes, which the processor keeps coherent.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone (in this process) and is only accessed with atomic operations.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the array `map`, whose elements are as many as `plan` says, and writes header and tables into it. The map must not have
    /// been given to the programs yet.
    pub(super) fn new(map: BorrowedFd<'_>, plan: &Plan) -> io::Result<Self> {
        let len = plan.elements as usize * ELEMENT;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else can hold references into it.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mapping = Self { base, len };
        for (element, extents) in &plan.tables {
            mapping.write(*element as usize * ELEMENT, extents);
        }
        mapping.write(HEADER_ELEMENT as usize * ELEMENT, std::slice::from_ref(&plan.header));
        Ok(mapping)
    }

    /// Copies plain values to an offset, before anybody else can see the map.
    fn write<T: Copy>(&self, offset: usize, values: &[T]) {
        let size = size_of_val(values);
        assert!(
            offset.checked_add(size).is_some_and(|end| end <= self.len),
            "the plan reserves room for all it writes"
        );
        // SAFETY: in bounds as just asserted; mapped for writing; `values` cannot overlap a mapping that is private to this value.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), self.base.as_ptr().add(offset), size);
        }
    }

    /// The bytes of a part of the map.
    pub(super) fn bytes(&self, element: u32, len: usize) -> &[AtomicU8] {
        let offset = self.checked(element, len);
        // SAFETY: in bounds; AtomicU8 has the layout of u8; the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), len) }
    }

    /// The same as 8-byte words, rounded up to whole words: parts begin at elements, which are a multiple of 8 bytes.
    pub(super) fn words(&self, element: u32, len: usize) -> &[AtomicU64] {
        let words = len.div_ceil(8);
        let offset = self.checked(element, words * 8);
        // SAFETY: in bounds; aligned, since the mapping begins at a page and elements are 4096 bytes; lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), words) }
    }

    /// Takes a flag: true if a program has set it since the last call.
    pub(super) fn take_flag(&self, which: Flag) -> bool {
        self.flag(which).swap(0, Ordering::SeqCst) != 0
    }

    /// Looks at a flag.
    pub(super) fn is_set(&self, which: Flag) -> bool {
        self.flag(which).load(Ordering::SeqCst) != 0
    }

    fn flag(&self, which: Flag) -> &AtomicU8 {
        let offset = match which {
            Flag::Overflowed => std::mem::offset_of!(Flags, overflowed),
            Flag::DiscardsOverflowed => std::mem::offset_of!(Flags, discards_overflowed),
            Flag::LayoutStale => std::mem::offset_of!(Flags, layout_stale),
            Flag::ForeignMapping => std::mem::offset_of!(Flags, foreign_mapping),
            Flag::RingReset => std::mem::offset_of!(Flags, ring_reset),
        };
        &self.bytes(FLAGS_ELEMENT, size_of::<Flags>())[offset]
    }

    fn checked(&self, element: u32, len: usize) -> usize {
        let offset = element as usize * ELEMENT;
        assert!(offset + len <= self.len, "the plan reserves room for every part");
        offset
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// One of [`Flags`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Flag {
    /// A write could not be mapped to a page.
    Overflowed,
    /// A discard could not be mapped to pages.
    DiscardsOverflowed,
    /// The memslots have changed.
    LayoutStale,
    /// Another process maps the RAM.
    ForeignMapping,
    /// The VMM has emptied the dirty ring.
    RingReset,
}

/// The records in what the memslot iterator wrote; bytes after the last whole one are left out.
pub(super) fn records(bytes: &[u8]) -> impl Iterator<Item = Record> + '_ {
    bytes.chunks_exact(size_of::<Record>()).map(|chunk| {
        // SAFETY: the chunk has the size of a record, which is made of integers only, and the read needs no alignment.
        unsafe { std::ptr::read_unaligned(chunk.as_ptr().cast()) }
    })
}
