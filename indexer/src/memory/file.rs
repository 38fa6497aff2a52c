//! Guest memory that is a file: a named RAM file or a memfd, mapped shared by the VMM.
//!
//! Owns finding and opening that file (read-only), its holes, and copying reads.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use memdex_wire::PAGE_SIZE;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::{MemoryError, process::Below, push_run, window::Window};
use crate::{
    units::Hva,
    vm::descriptor::Region,
    watch::{pagemap::Pagemap, process::Process},
};

/// What a file is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// How far a walk over a region has found data: pages before this one that it has not passed yet are none of them holes.
#[derive(Debug, Default)]
pub struct Walk {
    until: u32,
}

/// A RAM file.
#[derive(Debug)]
pub(super) struct FileMemory {
    file: File,
    /// Where the region stands in the VMM.
    start: Hva,
    /// Offset in the file of the region's first byte.
    offset: u64,
    /// Whether its pages may be mapped without any risk of allocating one.
    in_place: bool,
}

impl FileMemory {
    /// Opens the file, wherever the process lets us get at it.
    pub(super) fn open(
        process: &Process,
        start: Hva,
        wanted: Identity,
        offset: u64,
        path: &Path,
    ) -> Result<Self, MemoryError> {
        // The mapping itself is the surest way (CAP_SYS_ADMIN), also for a file that was deleted or is in another mount namespace. Then a
        // descriptor the process still has, then the name as the process sees it.
        let file = match mapped_file(process, start) {
            Ok((file, _)) if is(&file, wanted) => Some(file),
            // Something else is mapped there by now: the file as the VMM still has it open is not the guest's memory any more.
            Ok(_) => None,
            Err(_) => open_descriptor(process, wanted).or_else(|| open_path(process, path, wanted)),
        };
        match file {
            Some(file) => {
                let in_place = Window::possible() && is_shmem(&file);
                Ok(Self { file, start, offset, in_place })
            }
            None if process.alive() => Err(MemoryError::Vanished),
            None => Err(MemoryError::Gone),
        }
    }

    pub(super) fn in_place(&self) -> bool {
        self.in_place
    }

    /// Runs of pages that are not holes.
    ///
    /// SEEK_HOLE alone would do, but it walks on to the next hole wherever that is: on a RAM file without holes each
    /// question about a few pages would cost a walk over gigabytes. A page that the VMM has mapped is in the file, so the
    /// page table answers for nearly all of them; only where it shows nothing is the file asked, page by page.
    ///
    /// A walk over all of a region, as an audit is, brings a `walk` along: then the end of each run of data is asked for once and remembered,
    /// which makes the whole walk linear, also where the VMM has mapped nothing (a guest that has just arrived).
    pub(super) fn data(
        &self,
        pagemap: &Pagemap,
        pages: Range<u32>,
        mut walk: Option<&mut Walk>,
        out: &mut Vec<Range<u32>>,
    ) -> Result<(), MemoryError> {
        // The region starts inside the file, so a length below its end means that the file became shorter.
        if self.file.metadata().map_err(MemoryError::Io)?.len() < self.position(pages.end) {
            return Err(MemoryError::Vanished);
        }
        let size = PAGE_SIZE as u64;
        let address = |page: u32| self.start.add(u64::from(page) * size);
        let mut mapped = Vec::new();
        pagemap.present(address(pages.start)..address(pages.end), &mut mapped)?;
        let first = out.len();
        let mut at = pages.start;
        for run in mapped {
            let number = |address: Hva| ((address.0 - self.start.0) / size) as u32;
            let (start, end) = (number(run.start), number(run.end));
            self.unmapped_data(at..start, walk.as_deref_mut(), first, out)?;
            push_run(out, first, start..end);
            at = end;
        }
        self.unmapped_data(at..pages.end, walk, first, out)
    }

    /// Runs of data among pages that the VMM has not mapped.
    fn unmapped_data(
        &self,
        pages: Range<u32>,
        mut walk: Option<&mut Walk>,
        first: usize,
        out: &mut Vec<Range<u32>>,
    ) -> Result<(), MemoryError> {
        let mut at = pages.start;
        while at < pages.end {
            if let Some(Walk { until }) = walk.as_deref().filter(|walk| at < walk.until) {
                let end = pages.end.min(*until);
                push_run(out, first, at..end);
                at = end;
                continue;
            }
            let position = match seek(&self.file, SeekFrom::Data(self.position(at))) {
                Ok(position) => position,
                // No data from here to the end of the file.
                Err(Errno::NXIO) => return Ok(()),
                Err(error) => return Err(MemoryError::Io(error.into())),
            };
            let found = (position.max(self.offset) - self.offset) / PAGE_SIZE as u64;
            let Some(page) = u32::try_from(found).ok().filter(|page| *page < pages.end) else {
                return Ok(());
            };
            let end = match walk.as_deref_mut() {
                None => page + 1,
                Some(walk) => {
                    walk.until = self.next_hole(page)?.max(page + 1);
                    walk.until.min(pages.end)
                }
            };
            push_run(out, first, page..end);
            at = end;
        }
        Ok(())
    }

    /// The first page from `page` on that is a hole.
    fn next_hole(&self, page: u32) -> Result<u32, MemoryError> {
        match seek(&self.file, SeekFrom::Hole(self.position(page))) {
            Ok(hole) => {
                let pages = hole.saturating_sub(self.offset).div_ceil(PAGE_SIZE as u64);
                Ok(u32::try_from(pages).unwrap_or(u32::MAX))
            }
            // Punched, or cut off, in between.
            Err(Errno::NXIO) => Ok(page),
            Err(error) => Err(MemoryError::Io(error.into())),
        }
    }

    /// read(2) gives zeros for a hole and leaves it one, and a file that became shorter just ends.
    pub(super) fn read(&self, pages: Range<u32>, buffer: &mut [u8]) -> Result<(), MemoryError> {
        match self.file.read_exact_at(buffer, self.position(pages.start)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(MemoryError::Vanished),
            other => other.map_err(MemoryError::Io),
        }
    }

    /// The same for pages in a row, each into a buffer of its own.
    pub(super) fn read_scattered(
        &self,
        first: u32,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), MemoryError> {
        let read = rustix::io::preadv(&self.file, buffers, self.position(first))
            .map_err(|error| MemoryError::Io(error.into()))?;
        // One call may give less than all, at the end of the file or when it is interrupted: the rest page by page.
        let whole = read / PAGE_SIZE;
        (first..).zip(buffers).skip(whole).try_for_each(|(page, buffer)| self.read(page..page + 1, buffer))
    }

    /// A view of the pages; `None` if it can't be had, and then reading does.
    pub(super) fn window(&self, pages: &Range<u32>) -> Option<Window> {
        if !self.in_place || pages.is_empty() {
            return None;
        }
        Window::map(&self.file, self.position(pages.start), super::bytes(pages))
    }

    /// Whether what was seen through the window was the file's content.
    pub(super) fn accept(&self, window: &mut Window) -> Result<(), MemoryError> {
        let end = window.end_in_file();
        let faults = window.close();
        if faults.broken {
            return Err(MemoryError::Io(io::Error::other("the memory reported a hardware error")));
        }
        // A fault within the file's length was a hole: zeros were the right thing to see. Beyond the length nothing is.
        if faults.absent && self.file.metadata().map_err(MemoryError::Io)?.len() < end {
            return Err(MemoryError::Vanished);
        }
        Ok(())
    }

    fn position(&self, page: u32) -> u64 {
        self.offset + u64::from(page) * PAGE_SIZE as u64
    }
}

/// Walks SEEK_DATA and SEEK_HOLE. Parts of pages count as pages.
pub(super) fn data(
    file: &File,
    offset: u64,
    pages: Range<u32>,
    out: &mut Vec<Range<u32>>,
) -> Result<(), MemoryError> {
    let page = PAGE_SIZE as u64;
    let first = out.len();
    let (mut at, end) = (offset + u64::from(pages.start) * page, offset + u64::from(pages.end) * page);
    // The region starts inside the file, so a length below its end means that the file became shorter.
    if file.metadata().map_err(MemoryError::Io)?.len() < end {
        return Err(MemoryError::Vanished);
    }
    let number = |position: u64| u32::try_from((position - offset) / page).unwrap_or(u32::MAX);
    while at < end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < end => start,
            // No data from here to the end of the file.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(MemoryError::Io(error.into())),
        };
        at = match seek(file, SeekFrom::Hole(start)) {
            Ok(hole) => hole.min(end),
            // Punched in between: the file has no such position as data any more, look on behind it.
            Err(Errno::NXIO) => start + page,
            Err(error) => return Err(MemoryError::Io(error.into())),
        }
        .max(start + 1);
        push_run(out, first, number(start.max(offset))..number(at.min(end) + page - 1).min(pages.end));
    }
    Ok(())
}

pub(super) fn is(file: &File, wanted: Identity) -> bool {
    file.metadata().is_ok_and(|found| found.dev() == wanted.device && found.ino() == wanted.inode)
}

fn is_shmem(file: &File) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == TMPFS_MAGIC)
}

/// The file mapped at an address, and the offset of that address in it.
fn mapped_file(process: &Process, address: Hva) -> io::Result<(File, u64)> {
    mapped_file_with(process, address, |path| File::open(path))
}

/// The same, opened as the caller wants it.
pub(super) fn mapped_file_with(
    process: &Process,
    address: Hva,
    open: impl FnOnce(&Path) -> io::Result<File>,
) -> io::Result<(File, u64)> {
    let maps = process.with_path("maps", fs::read_to_string)?;
    let (range, offset) = maps
        .lines()
        .filter_map(mapping)
        .find(|(range, _)| range.contains(&address.0))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let link = format!("/proc/{}/map_files/{:x}-{:x}", process.id().pid, range.start, range.end);
    let file = open(Path::new(&link))?;
    if !process.alive() {
        return Err(Errno::SRCH.into());
    }
    Ok((file, offset + (address.0 - range.start)))
}

/// Whether all of a range still shows the file, from `offset` on. Where the kernel does not let us look it is taken for granted.
pub(super) fn still_mapped(process: &Process, range: Range<u64>, wanted: Identity, offset: u64) -> bool {
    let same = match mapped_file(process, Hva(range.start)) {
        Ok((file, at)) => is(&file, wanted) && at == offset,
        Err(error) => return error.kind() == io::ErrorKind::PermissionDenied,
    };
    // The rest by the kernel's own numbers, which need not be those of `stat`.
    let Ok(maps) = process.with_path("maps", fs::read_to_string) else { return false };
    let (mut at, mut first) = (range.start, None);
    for line in maps.lines() {
        let Some((vma, vma_offset)) = mapping(line) else { continue };
        if at >= range.end || !vma.contains(&at) {
            continue;
        }
        let number = line.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>();
        let continues = vma_offset + (at - vma.start) == offset + (at - range.start);
        if !continues || *first.get_or_insert_with(|| number.clone()) != number {
            return false;
        }
        at = vma.end;
    }
    same && at >= range.end
}

/// Addresses and file offset of a line of `/proc/PID/maps`.
fn mapping(line: &str) -> Option<(Range<u64>, u64)> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    Some((hex(start)?..hex(end)?, hex(offset)?))
}

fn open_descriptor(process: &Process, wanted: Identity) -> Option<File> {
    let entries = process.with_path("fd", fs::read_dir).ok()?;
    entries.flatten().find_map(|entry| {
        // Look before opening: opening a pipe or a device would have effects.
        let found = fs::metadata(entry.path()).ok()?;
        if found.dev() != wanted.device || found.ino() != wanted.inode {
            return None;
        }
        File::open(entry.path()).ok().filter(|file| is(file, wanted))
    })
}

fn open_path(process: &Process, path: &Path, wanted: Identity) -> Option<File> {
    let inside = path.strip_prefix("/").ok()?;
    let path = process.path("root").join(inside);
    let found = fs::metadata(&path).ok()?;
    if found.dev() != wanted.device || found.ino() != wanted.inode {
        return None;
    }
    File::open(path).ok().filter(|file| is(file, wanted))
}

/// What shows through a private file mapping where the VMM has not written: the file's content.
pub(super) fn private_below(process: &Process, region: &Region) -> Result<Below, MemoryError> {
    match mapped_file(process, region.start) {
        Ok((file, offset)) => Ok(Below::File { file, offset }),
        Err(_) if !process.alive() => Err(MemoryError::Gone),
        // Can't be told what is there, so everything may be data.
        Err(_) => Ok(Below::Unknown),
    }
}

/// As [`FileMemory::data`], for the file under a private mapping; a shorter file has nothing behind its end.
pub(super) fn data_below(
    file: &File,
    offset: u64,
    pages: Range<u32>,
    out: &mut Vec<Range<u32>>,
) -> Result<(), MemoryError> {
    let length = file.metadata().map_err(MemoryError::Io)?.len().saturating_sub(offset);
    let inside = u32::try_from(length / PAGE_SIZE as u64).unwrap_or(u32::MAX);
    if pages.start < inside.min(pages.end) {
        data(file, offset, pages.start..inside.min(pages.end), out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f00a000-7f00c000 rw-s 00003000 00:01 1030 /memfd:a b (deleted)";
        assert_eq!(mapping(line), Some((0x7f00_a000..0x7f00_c000, 0x3000)));
        assert_eq!(mapping("nonsense"), None);
    }
}
