//! Guest memory that only the VMM's address space has: anonymous, or a file mapped private.
//!
//! Owns `process_vm_readv`. Never reads a page that is not known to hold something, so that no page is populated by reading.
#![expect(unsafe_code, reason = "process_vm_readv has no safe wrapper")]

use std::{fs::File, io, ops::Range};

use memdex_wire::PAGE_SIZE;

use super::{MemoryError, file::data_below, push_run};
use crate::{
    units::Hva,
    watch::{pagemap::Pagemap, process::Process},
};

/// What a page reads as that the VMM has not populated.
#[derive(Debug)]
pub(super) enum Below {
    /// Zeros.
    Nothing,
    /// The content of a file; `offset` is that of the region's first byte.
    File { file: File, offset: u64 },
    /// Can't be told.
    Unknown,
}

/// A region in the address space of a process.
#[derive(Debug)]
pub(super) struct ProcessMemory {
    process: Process,
    start: Hva,
    below: Below,
}

impl ProcessMemory {
    pub(super) fn new(process: Process, start: Hva, below: Below) -> Self {
        Self { process, start, below }
    }

    /// Runs of pages that are populated, or show something else than zeros if they aren't.
    pub(super) fn data(
        &self,
        pagemap: &Pagemap,
        pages: Range<u32>,
        out: &mut Vec<Range<u32>>,
    ) -> Result<(), MemoryError> {
        let mut found = Vec::new();
        match &self.below {
            Below::Unknown => {
                found.push(pages.clone());
            }
            Below::File { file, offset } => data_below(file, *offset, pages.clone(), &mut found)?,
            Below::Nothing => {}
        }
        let mut populated = Vec::new();
        pagemap.populated(self.address(pages.start)..self.address(pages.end), false, &mut populated)?;
        found.extend(populated.into_iter().map(|run| self.page(run.range.start)..self.page(run.range.end)));
        found.sort_unstable_by_key(|run| run.start);
        let first = out.len();
        found.into_iter().for_each(|run| push_run(out, first, run));
        Ok(())
    }

    pub(super) fn read(&self, pages: Range<u32>, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let pid = i32::try_from(self.process.id().pid).map_err(|_| MemoryError::Gone)?;
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            let remote = libc::iovec {
                iov_base: (self.address(pages.start).0 as usize + done) as *mut libc::c_void,
                iov_len: rest.len(),
            };
            // SAFETY: the kernel writes only to `local`, which is a mutably borrowed slice; the remote address is
            // another process's, checked by the kernel.
            let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
            match usize::try_from(read) {
                Ok(0) => return Err(self.vanished()),
                Ok(read) => done += read,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    return Err(match error.raw_os_error() {
                        Some(libc::EFAULT | libc::ENOMEM) => self.vanished(),
                        _ => MemoryError::from_io(error),
                    });
                }
            }
        }
        // The pid may have become another process's meanwhile, and then these are not the guest's bytes.
        if self.process.alive() { Ok(()) } else { Err(MemoryError::Gone) }
    }

    fn vanished(&self) -> MemoryError {
        if self.process.alive() { MemoryError::Vanished } else { MemoryError::Gone }
    }

    fn address(&self, page: u32) -> Hva {
        self.start.add(u64::from(page) * PAGE_SIZE as u64)
    }

    fn page(&self, address: Hva) -> u32 {
        u32::try_from((address.0 - self.start.0) / PAGE_SIZE as u64).unwrap_or(u32::MAX)
    }
}
