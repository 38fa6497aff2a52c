//! A part of the store's file in memory: words that are changed one by one, and room for blocks.
//!
//! Owns the mapping and nothing else: which word means what is said in [`super`], and nobody but this process writes the file (it is locked and
//! mode 0600). Offsets are checked; memory behind them has to be allocated in the file before it is touched, else a full tmpfs raises SIGBUS.
#![expect(unsafe_code, reason = "maps a file and hands out what is in it")]

use std::{
    fs::File,
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// See the module.
#[derive(Debug)]
pub(super) struct Area {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointer is to a shared mapping that lives as long as the area; the words in it are atomics, and the bytes of blocks are handed out as
// pointers whose users keep Rust's rules among themselves (see `slot`).
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps `len` bytes of the file from `offset` on; both are multiples of the page size.
    pub(super) fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: the address is the kernel's choice, so no other mapping is replaced.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                offset,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len })
    }

    /// The word at a byte offset.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "a word outside of the store");
        // SAFETY: inside the mapping (checked), aligned (the mapping is page-aligned), alive for `&self`; any bits are a number; every access to it is
        // atomic.
        unsafe { self.start.add(offset).cast::<AtomicU64>().as_ref() }
    }

    /// The half word at a byte offset.
    pub(super) fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len, "a word outside of the store");
        // SAFETY: as for `word`.
        unsafe { self.start.add(offset).cast::<AtomicU32>().as_ref() }
    }

    /// Where `len` bytes at an offset stand.
    pub(super) fn place(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "a place outside of the store");
        // SAFETY: inside the mapping (checked).
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nobody has a pointer into it any more: whoever does holds the store, which holds this.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
