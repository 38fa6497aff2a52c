//! A view of a piece of a RAM file in the daemon's address space, for as long as one call takes.
//!
//! Owns the mapping. It must not allocate a page of the file: reading a hole through an ordinary mapping would, and the guest (its balloon,
//! say) would grow because it was looked at. So the view is registered with a userfaultfd of the daemon's own that answers a missing page with
//! SIGBUS instead, and [`super::bus_error`] puts zeros there.
#![expect(unsafe_code, reason = "mmap and its bytes")]

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::bus_error::{Faults, Guard};
use crate::watch::userfault;

/// A mapped piece of a file.
#[derive(Debug)]
pub(super) struct Window {
    address: *mut std::ffi::c_void,
    len: usize,
    position: u64,
    // Dropped before the mapping is (see `Drop`): the option is emptied there. Without one nobody looks at the bytes any more.
    guard: Option<Guard>,
}

/// The daemon's userfaultfd; `None` on kernels where it can't be had.
fn missing_guard() -> Option<&'static OwnedFd> {
    static GUARD: OnceLock<Option<OwnedFd>> = OnceLock::new();
    GUARD.get_or_init(|| userfault::own_for_missing().ok()).as_ref()
}

impl Window {
    /// Whether files can be looked at in place here.
    pub(super) fn possible() -> bool {
        missing_guard().is_some()
    }

    /// Maps `len` bytes of a shmem file from `position` (both multiples of the page size); `None` if anything forbids it.
    pub(super) fn map(file: &File, position: u64, len: usize) -> Option<Self> {
        let missing = missing_guard()?;
        // Private, though nothing is ever written: a shared mapping of a file opened read-only can't be registered. Until a page is
        // written, a private mapping shows the file's own pages.
        //
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file.as_fd(), position)
        }
        .ok()?;
        let mut window = Self { address, len, position, guard: None };
        let start = address as usize;
        userfault::register_missing(missing, start..start + len).ok()?;
        // SAFETY: the mapping was made above and is ours alone; `Drop` ends the guard before it unmaps.
        window.guard = Some(unsafe { Guard::new(start..start + len) }?);
        // Without this, unmapping counts every page as used just now, and moves it to the list of the pages that are reclaimed last: a
        // lock and a walk for each, and the host would take for hot whatever was indexed.
        //
        // SAFETY: a hint for a mapping of ours.
        let _ = unsafe { madvise(address, len, Advice::Random) };
        Some(window)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // The file can't make it invalid: a page that is not there (any more) is replaced by zeros. Other processes may write while we read, so two reads of a byte may differ: a data race in the letter of the memory
        // model. It is without consequence for memory safety here: bytes are hashed, compared and copied, no length, index, pointer or branch
        // on which safety rests comes from them; and a digest of torn bytes is thrown away by whoever publishes, because the write that tore them
        // shows in the page table.
        //
        // SAFETY: mapped readable, `len` long, for as long as `self` lives; see above for what others may do to it.
        unsafe { std::slice::from_raw_parts(self.address.cast::<u8>(), self.len) }
    }

    /// One past the last byte, as a position in the file.
    pub(super) fn end_in_file(&self) -> u64 {
        self.position + self.len as u64
    }

    /// Ends the view and says what was missing in it. It stays mapped until it is dropped.
    pub(super) fn close(&mut self) -> Faults {
        self.guard.take().map_or(Faults { absent: false, broken: false }, |guard| guard.faults())
    }
}

// SAFETY: a mapping belongs to the process and not to a thread, and so does the list that guards are in. The address of a fault is looked up in that list
// by whichever thread takes it.
unsafe impl Send for Window {}

impl Drop for Window {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: mapped by `map`, no reference to it is left.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}
