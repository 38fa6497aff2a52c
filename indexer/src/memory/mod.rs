//! Reading guest pages: in place from the RAM file where there is one, else copied out of the VMM.
//!
//! At the destination of a migration also writing ([`Ram`]).
//!
//! Owns the ways to the bytes and the promise that reading changes nothing: no page is allocated, no hole filled, no guest
//! grows because it is indexed, and memory that vanishes under the reader is an error, not a crash. Never interprets the bytes
//! and never says whether they are current: that takes arming *before* reading (`watch`) and a look at the marks after it.

mod bus_error;
mod file;
mod process;
mod ram;
mod window;

use std::{
    io::{self, IoSliceMut},
    ops::Range,
};

use memdex_wire::PAGE_SIZE;

pub use self::file::Walk;
pub use self::ram::{Ram, Room};
use self::{file::FileMemory, process::ProcessMemory, window::Window};
use crate::{
    fingerprint::Page,
    vm::descriptor::{Backing, ProcessId, Region},
    watch::{
        pagemap::{Pagemap, ScanError},
        process::{Process, is_gone},
    },
};

/// A good number of pages for one [`RegionMemory::with_pages`]: 8 MiB. From 2 MiB on the rate hardly changes: mapping and unmapping
/// a page costs the kernel about as much as hashing it (0.4–0.5 µs, mostly cache misses on its own bookkeeping), and copying it with read(2) as much
/// again. Smaller keeps a worker's resident set small, larger saves nothing.
pub const WINDOW_PAGES: u32 = 2048;

/// The memory of one region of a VM.
#[derive(Debug)]
pub struct RegionMemory {
    pages: u32,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The RAM is the file.
    File(FileMemory),
    /// Only the VMM's address space has it.
    Process(ProcessMemory),
}

/// Pages that were looked at in place, and are still mapped. Dropping it unmaps them, for which the kernel takes a tenth of a microsecond a page and more.
#[derive(Debug)]
pub struct Spent(#[expect(dead_code, reason = "there to be dropped")] Window);

/// Why memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The process has ended.
    #[error("the VMM process has ended; nothing to do")]
    Gone,
    /// The region, or a part of it or of its file, is no more.
    #[error(
        "a part of the region is no longer there (unplugged, unmapped or truncated); it will be discovered anew"
    )]
    Vanished,
    /// Anything else.
    #[error(
        "reading guest memory failed: {0}; the daemon needs CAP_SYS_PTRACE and CAP_SYS_ADMIN, run it as root"
    )]
    Io(io::Error),
}

impl MemoryError {
    fn from_io(error: io::Error) -> Self {
        if is_gone(&error) { Self::Gone } else { Self::Io(error) }
    }
}

impl From<ScanError> for MemoryError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Gone => Self::Gone,
            ScanError::NotWatched => Self::Vanished,
            ScanError::Unsupported(error) | ScanError::Io(error) => Self::Io(error),
        }
    }
}

impl RegionMemory {
    /// Opens the memory of a region as discovery described it.
    ///
    /// # Errors
    /// [`MemoryError::Gone`] if the process has ended, [`MemoryError::Vanished`] if the file at hand isn't the one described.
    pub fn open(process: ProcessId, region: &Region) -> Result<Self, MemoryError> {
        let process = Process::open(process).map_err(MemoryError::from_io)?;
        let pages = u32::try_from(region.pages())
            .map_err(|_| MemoryError::Io(io::Error::other("a region has more than 2^32 pages")))?;
        let source = match &region.backing {
            Backing::SharedFile { device, inode, offset, path, .. } => Source::File(FileMemory::open(
                &process,
                region.start,
                file::Identity { device: *device, inode: *inode },
                *offset,
                path,
            )?),
            Backing::PrivateFile { .. } => {
                let below = file::private_below(&process, region)?;
                Source::Process(ProcessMemory::new(process, region.start, below))
            }
            Backing::Anonymous => {
                Source::Process(ProcessMemory::new(process, region.start, process::Below::Nothing))
            }
        };
        Ok(Self { pages, source })
    }

    /// Whether the VMM still has this memory where the region is: it may map something else there at any time. To be asked once more when the
    /// region is watched, since what is mapped there from then on is not.
    #[must_use]
    pub fn still_mapped(&self, process: ProcessId, region: &Region) -> bool {
        let Backing::SharedFile { device, inode, offset, .. } = &region.backing else {
            // It is read through the address space, and so is what is there, whatever it is.
            return true;
        };
        let wanted = file::Identity { device: *device, inode: *inode };
        Process::open(process).is_ok_and(|process| {
            file::still_mapped(&process, region.start.0..region.end().0, wanted, *offset)
        })
    }

    /// Appends the runs of pages (numbers within the region) that may hold data; all others read as zero and take no memory. For a RAM
    /// file the *file* is asked, not the page table: a page that another mapping wrote has no entry in the VMM's page table.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn data(
        &self,
        pagemap: &Pagemap,
        pages: Range<u32>,
        out: &mut Vec<Range<u32>>,
    ) -> Result<(), MemoryError> {
        self.check(&pages)?;
        match &self.source {
            Source::File(file) => file.data(pagemap, pages, None, out),
            Source::Process(process) => process.data(pagemap, pages, out),
        }
    }

    /// The same for the next part of a walk over the whole region, from its first page to its last: cheaper for that, and dearer for anything else.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn data_along(
        &self,
        pagemap: &Pagemap,
        pages: Range<u32>,
        walk: &mut Walk,
        out: &mut Vec<Range<u32>>,
    ) -> Result<(), MemoryError> {
        self.check(&pages)?;
        match &self.source {
            Source::File(file) => file.data(pagemap, pages, Some(walk), out),
            Source::Process(process) => process.data(pagemap, pages, out),
        }
    }

    /// Copies pages into `buffer`, which has to be as long as they are. Holes read as zeros and stay holes.
    ///
    /// # Errors
    /// See [`MemoryError`]; the buffer's content is undefined then.
    pub fn read(&self, pages: Range<u32>, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check(&pages)?;
        if buffer.len() != bytes(&pages) {
            return Err(MemoryError::Io(io::Error::other("the buffer is not as long as the pages")));
        }
        match &self.source {
            Source::File(file) => file.read(pages, buffer),
            Source::Process(process) => process.read(pages, buffer),
        }
    }

    /// Copies pages in a row from `first` on, each into a buffer of its own, in as few steps as possible.
    ///
    /// # Errors
    /// See [`MemoryError`]; the content of the buffers is undefined then.
    pub fn read_scattered(&self, first: u32, buffers: &mut [IoSliceMut<'_>]) -> Result<(), MemoryError> {
        let pages = first..first.saturating_add(buffers.len() as u32);
        self.check(&pages)?;
        if buffers.iter().any(|buffer| buffer.len() != PAGE_SIZE) {
            return Err(MemoryError::Io(io::Error::other("a buffer is not as long as a page")));
        }
        match &self.source {
            Source::File(file) => file.read_scattered(first, buffers),
            Source::Process(process) => {
                pages.zip(buffers).try_for_each(|(page, buffer)| process.read(page..page + 1, buffer))
            }
        }
    }

    /// Hands out pages in place where that is possible, else a copy in `scratch`. The bytes may change while `f` looks at them: the guest
    /// runs. `f` must not derive anything from them that has to be consistent.
    ///
    /// # Errors
    /// See [`MemoryError`]; what `f` returned is dropped then, as it saw bytes that are not the guest's.
    pub fn with_pages<R>(
        &self,
        pages: Range<u32>,
        scratch: &mut Vec<u8>,
        f: impl FnOnce(&[Page]) -> R,
    ) -> Result<R, MemoryError> {
        self.with_pages_spent(pages, scratch, f).map(|(result, _)| result)
    }

    /// The same, and what is left to be unmapped, for somebody who has more time than the caller.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn with_pages_spent<R>(
        &self,
        pages: Range<u32>,
        scratch: &mut Vec<u8>,
        f: impl FnOnce(&[Page]) -> R,
    ) -> Result<(R, Option<Spent>), MemoryError> {
        self.check(&pages)?;
        if let Source::File(file) = &self.source
            && let Some(mut window) = file.window(&pages)
        {
            let result = f(as_pages(window.bytes()));
            file.accept(&mut window)?;
            return Ok((result, Some(Spent(window))));
        }
        scratch.resize(bytes(&pages), 0);
        self.read(pages, scratch)?;
        Ok((f(as_pages(scratch)), None))
    }

    /// Whether [`RegionMemory::with_pages`] works without a copy.
    #[must_use]
    pub fn in_place(&self) -> bool {
        matches!(&self.source, Source::File(file) if file.in_place())
    }

    fn check(&self, pages: &Range<u32>) -> Result<(), MemoryError> {
        let inside = pages.start <= pages.end && pages.end <= self.pages;
        if inside { Ok(()) } else { Err(MemoryError::Io(io::Error::other("pages outside of the region"))) }
    }
}

/// Length of pages in bytes.
fn bytes(pages: &Range<u32>) -> usize {
    pages.len() * PAGE_SIZE
}

/// The whole pages of `bytes`.
fn as_pages(bytes: &[u8]) -> &[Page] {
    bytes.as_chunks::<PAGE_SIZE>().0
}

/// Appends a run; one that touches or overlaps the last (not before `first`) extends it.
fn push_run(out: &mut Vec<Range<u32>>, first: usize, run: Range<u32>) {
    match out[first..].last_mut() {
        Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
        _ if run.is_empty() => {}
        _ => out.push(run),
    }
}
