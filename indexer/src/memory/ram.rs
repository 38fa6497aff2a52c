//! All of a VM's guest memory as files that can be written: what a destination fills, and what it reads content back from.
//!
//! Owns the files and the arithmetic from page to position. Never decides what a page shall hold. It writes with pwrite(2), so that no mapping of
//! ours appears beside the VMM's, and pages of zeros are holes.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Mutex, PoisonError},
};

use memdex_wire::PAGE_SIZE;
use rustix::fs::FallocateFlags;

use super::{MemoryError, file};
use crate::{
    fingerprint::Page,
    map::Layout,
    units::PageRange,
    vm::descriptor::{Backing, ProcessId, Region},
    watch::process::Process,
};

/// See the module.
#[derive(Debug)]
pub struct Ram {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    pages: PageRange,
    file: File,
    /// Offset in the file of the first page.
    offset: u64,
    /// Who writes to a file of memory has it for himself in the kernel, and others spin there until he is done: here they sleep, and the processor is free for
    /// those who hash and compress.
    writing: Mutex<()>,
}

impl Ram {
    /// Opens the memory of a VM for reading and writing.
    ///
    /// # Errors
    /// A sentence, if a region is not a shared file, or its file cannot be opened.
    pub fn open(process: ProcessId, regions: &[Region], layout: &Layout) -> Result<Self, String> {
        let vmm = Process::open(process).map_err(|error| MemoryError::from_io(error).to_string())?;
        let mut parts = Vec::new();
        for (region, place) in regions.iter().zip(layout.regions()) {
            let Backing::SharedFile { device, inode, offset, .. } = region.backing else {
                return Err(format!(
                    "region {} is not a shared file: give the VM its memory with -object memory-backend-file,share=on",
                    region.name
                ));
            };
            let wanted = file::Identity { device, inode };
            let open = |path: &std::path::Path| OpenOptions::new().read(true).write(true).open(path);
            let file = file::mapped_file_with(&vmm, region.start, open)
                .map(|(file, _)| file)
                .and_then(|file| {
                    if file::is(&file, wanted) { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
                })
                .map_err(|error| {
                    format!("the RAM file of region {} cannot be opened for writing: {error}", region.name)
                })?;
            parts.push(Part { pages: place.range(), file, offset, writing: Mutex::default() });
        }
        Ok(Self { parts })
    }

    /// Reads one page.
    ///
    /// # Errors
    /// If the file does.
    pub fn read(&self, page: u32, into: &mut Page) -> io::Result<()> {
        let part = self.part(page)?;
        part.file.read_exact_at(into, part.position(page))
    }

    /// Reads pages in a row, of one region.
    ///
    /// # Errors
    /// If the file does, or they are not all of one region.
    pub fn read_run(&self, run: PageRange, into: &mut [u8]) -> io::Result<()> {
        let part = self.part(run.start)?;
        if run.end > part.pages.end || into.len() != run.len() * PAGE_SIZE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        part.file.read_exact_at(into, part.position(run.start))
    }

    /// Writes whole pages from `first` on; they may not reach beyond its region.
    ///
    /// # Errors
    /// If the file system has no room, or the pages are not all of one region.
    pub fn write(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        let part = self.part(first)?;
        if bytes.len() as u64 > u64::from(part.pages.end - first) * PAGE_SIZE as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let _alone = part.writing.lock().unwrap_or_else(PoisonError::into_inner);
        part.file.write_all_at(bytes, part.position(first))
    }

    /// Makes holes of pages, wherever they are: they read as zeros and take no memory.
    ///
    /// # Errors
    /// If the file system cannot.
    pub fn punch(&self, run: PageRange) -> io::Result<()> {
        for part in &self.parts {
            let (from, to) = (run.start.max(part.pages.start), run.end.min(part.pages.end));
            if from < to {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let len = u64::from(to - from) * PAGE_SIZE as u64;
                rustix::fs::fallocate(&part.file, flags, part.position(from), len)?;
            }
        }
        Ok(())
    }

    /// The runs of pages that are not holes.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn data(&self) -> Result<Vec<PageRange>, MemoryError> {
        let mut all = Vec::new();
        for part in &self.parts {
            let mut found: Vec<Range<u32>> = Vec::new();
            file::data(&part.file, part.offset, 0..part.pages.end - part.pages.start, &mut found)?;
            all.extend(found.iter().map(|run| part.pages.start + run.start..part.pages.start + run.end));
        }
        Ok(all)
    }

    /// Bytes of memory that the files take, and that their file systems have left.
    ///
    /// # Errors
    /// If they do not say.
    pub fn room(&self) -> io::Result<Room> {
        let mut room = Room { taken: 0, free: u64::MAX };
        for part in &self.parts {
            room.taken += part.file.metadata()?.blocks() * 512;
            let system = rustix::fs::fstatvfs(&part.file)?;
            // A tmpfs without a limit says that it has no blocks at all.
            if system.f_blocks > 0 {
                room.free = room.free.min(system.f_bavail * system.f_frsize);
            }
        }
        Ok(room)
    }

    fn part(&self, page: u32) -> io::Result<&Part> {
        let part = self.parts.iter().find(|part| part.pages.contains(&page));
        part.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Part {
    fn position(&self, page: u32) -> u64 {
        self.offset + u64::from(page - self.pages.start) * PAGE_SIZE as u64
    }
}

/// How much memory there is for a VM's files.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Bytes they take.
    pub taken: u64,
    /// Bytes that the file system has left.
    pub free: u64,
}
