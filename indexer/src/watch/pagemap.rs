//! Which pages of a VMM are populated and which were written since they were armed: the `PAGEMAP_SCAN` ioctl.
//!
//! Owns the ioctl (Documentation/admin-guide/mm/pagemap.rst). Only looks: it never passes `PM_SCAN_WP_MATCHING`, because
//! that calls the MMU notifiers over the *whole* requested range and makes KVM drop all its mappings of it. Arming is
//! [`super::userfault`]'s, and is done for the dirty runs alone.
//!
//! # Minimum kernel version
//! 6.7. On older ones [`super::entries`] says the same: where pages are, and (by soft-dirty bits) which were written.
#![expect(unsafe_code, reason = "an ioctl that no safe crate offers")]

use std::{fs::File, io, ops::Range};

use linux_raw_sys::general::{
    PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, page_region,
    pm_scan_arg,
};
use memdex_wire::PAGE_SIZE;
use rustix::{
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode},
};

use super::{
    entries,
    process::{Process, is_gone},
};
use crate::{units::Hva, vm::descriptor::ProcessId};

/// The page table of a VMM process.
///
/// An open pagemap file holds on to the address space it was opened with. When the process ends or calls `execve`, that
/// address space becomes empty and a scan of it finds nothing, *without an error*; so every scan that is to be trusted
/// also asks whether the range is still mapped.
#[derive(Debug)]
pub struct Pagemap {
    process: Process,
    file: File,
}

/// Neighbouring populated pages that are all armed or all not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PopulatedRun {
    /// Where they stand.
    pub range: Range<Hva>,
    /// Whether a write to them would be seen: write-protected, and not written since.
    pub armed: bool,
}

/// Why a page table could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The process has ended.
    #[error("the VMM process has ended, so its page table can't be scanned; nothing to do")]
    Gone,
    /// Some mapping in the range is not registered with an asynchronous write-protecting userfaultfd, or there is none.
    #[error(
        "a mapping in the range is not watched (it is new, or was replaced); register it again before trusting a scan"
    )]
    NotWatched,
    /// The kernel has no PAGEMAP_SCAN.
    #[error(
        "this kernel can't scan page tables for written pages (PAGEMAP_SCAN: {0}); Linux 6.7 or newer is needed for exact tracking"
    )]
    Unsupported(io::Error),
    /// Anything else.
    #[error("scanning the VMM's page table failed: {0}; the daemon needs CAP_SYS_PTRACE, run it as root")]
    Io(io::Error),
}

impl Pagemap {
    /// Opens the page table of a process.
    ///
    /// # Errors
    /// [`ScanError::Gone`] if the process has ended, [`ScanError::Io`] if it may not be looked at.
    pub fn open(process: ProcessId) -> Result<Self, ScanError> {
        let wrap = |e: io::Error| if is_gone(&e) { ScanError::Gone } else { ScanError::Io(e) };
        let process = Process::open(process).map_err(wrap)?;
        let file = process.with_path("pagemap", File::open).map_err(wrap)?;
        Ok(Self { process, file })
    }

    /// Tries PAGEMAP_SCAN on the daemon's own memory.
    ///
    /// # Errors
    /// [`ScanError::Unsupported`] if the kernel has no such thing.
    pub fn probe() -> Result<(), ScanError> {
        let file = File::open("/proc/self/pagemap").map_err(ScanError::Io)?;
        let here = (&raw const file as u64) & !(PAGE_SIZE as u64 - 1);
        let mut regions = [EMPTY; 1];
        let query =
            Query { range: Hva(here)..Hva(here + PAGE_SIZE as u64), mask: 0, any_of: POPULATED, returned: 0 };
        query.run(&file, false, &mut regions).map(drop).map_err(|e| ScanError::Unsupported(e.into()))
    }

    /// Appends the runs of pages of `range` that are populated (present or swapped out; page-table markers of armed
    /// empty pages count) and written since they were armed. Never-populated pages are left out: they hold nothing yet,
    /// and when they appear they appear as written.
    ///
    /// # Errors
    /// [`ScanError::NotWatched`] if a mapping of the range isn't registered or the edges of the range aren't mapped.
    pub fn written(&self, range: Range<Hva>, out: &mut Vec<Range<Hva>>) -> Result<(), ScanError> {
        let query = Query {
            range: range.clone(),
            mask: PAGE_IS_WRITTEN,
            any_of: POPULATED,
            returned: PAGE_IS_WRITTEN,
        };
        let first = out.len();
        let walked = self.walk(query, true, |run| match out[first..].last_mut() {
            Some(last) if last.end.0 == run.start => last.end = Hva(run.end),
            _ => out.push(Hva(run.start)..Hva(run.end)),
        });
        match walked {
            // A page without an entry counts, too: it has the bit if its mapping is new.
            Err(ScanError::Unsupported(_)) => {
                let complete = entries::runs(&self.file, range, entries::SOFT_DIRTY, |run| out.push(run));
                self.complete(complete)
            }
            other => {
                other?;
                self.watched(range)
            }
        }
    }

    /// Appends every populated page of `range`, in runs that are armed or not. With `check` each mapping of the range has
    /// to be registered; without it the call also works before attaching, and then every run is "not armed".
    ///
    /// # Errors
    /// [`ScanError::NotWatched`] only with `check`, as in [`Pagemap::written`].
    pub fn populated(
        &self,
        range: Range<Hva>,
        check: bool,
        out: &mut Vec<PopulatedRun>,
    ) -> Result<(), ScanError> {
        let query = Query { range: range.clone(), mask: 0, any_of: POPULATED, returned: PAGE_IS_WRITTEN };
        let first = out.len();
        let walked = self.walk(query, check, |run| {
            let armed = run.categories & u64::from(PAGE_IS_WRITTEN) == 0;
            match out[first..].last_mut() {
                Some(last) if last.range.end.0 == run.start && last.armed == armed => {
                    last.range.end = Hva(run.end);
                }
                _ => out.push(PopulatedRun { range: Hva(run.start)..Hva(run.end), armed }),
            }
        });
        match walked {
            Err(ScanError::Unsupported(_)) if !check => {
                let run = |range| out.push(PopulatedRun { range, armed: false });
                self.without_scan(range.clone(), entries::PRESENT | entries::SWAPPED, run)?;
            }
            Err(ScanError::Unsupported(_)) => {
                let complete = entries::walk(&self.file, range, |page, entry| {
                    if entry & (entries::PRESENT | entries::SWAPPED) == 0 {
                        return;
                    }
                    let armed = entry & entries::SOFT_DIRTY == 0;
                    match out[first..].last_mut() {
                        Some(last) if last.range.end == page.start && last.armed == armed => {
                            last.range.end = page.end;
                        }
                        _ => out.push(PopulatedRun { range: page, armed }),
                    }
                });
                return self.complete(complete);
            }
            other => other?,
        }
        if check {
            return self.watched(range);
        }
        if self.process.alive() { Ok(()) } else { Err(ScanError::Gone) }
    }

    /// Appends the runs of pages of `range` that are mapped right now: they have a page of memory behind them, which neither
    /// a swapped-out page nor a marker shows.
    ///
    /// # Errors
    /// [`ScanError::Gone`] if the process has ended.
    pub fn present(&self, range: Range<Hva>, out: &mut Vec<Range<Hva>>) -> Result<(), ScanError> {
        let query =
            Query { range: range.clone(), mask: PAGE_IS_PRESENT, any_of: 0, returned: PAGE_IS_PRESENT };
        let first = out.len();
        let walked = self.walk(query, false, |run| match out[first..].last_mut() {
            Some(last) if last.end.0 == run.start => last.end = Hva(run.end),
            _ => out.push(Hva(run.start)..Hva(run.end)),
        });
        match walked {
            Err(ScanError::Unsupported(_)) => {
                self.without_scan(range, entries::PRESENT, |run| out.push(run))?;
            }
            other => other?,
        }
        if self.process.alive() { Ok(()) } else { Err(ScanError::Gone) }
    }

    /// Where pages are, on a kernel that can't scan.
    fn without_scan(
        &self,
        range: Range<Hva>,
        bits: u64,
        each: impl FnMut(Range<Hva>),
    ) -> Result<(), ScanError> {
        entries::runs(&self.file, range, bits, each).map(drop).map_err(ScanError::Io)
    }

    /// What reading entries came to. An address space that is gone shows nothing, which must not pass for nothing written.
    fn complete(&self, read: io::Result<bool>) -> Result<(), ScanError> {
        match read {
            _ if !self.process.alive() => Err(ScanError::Gone),
            Ok(true) => Ok(()),
            Ok(false) => Err(ScanError::NotWatched),
            Err(error) => Err(ScanError::Io(error)),
        }
    }

    /// Runs a query to the end of its range, however many calls that takes.
    fn walk(
        &self,
        mut query: Query,
        check: bool,
        mut each: impl FnMut(&page_region),
    ) -> Result<(), ScanError> {
        // The kernel collects at most 512 runs at a time anyway (PAGEMAP_WALK_SIZE in fs/proc/task_mmu.c).
        let mut regions = [EMPTY; 512];
        while query.range.start < query.range.end {
            let scanned = query.run(&self.file, check, &mut regions).map_err(|e| self.explain(e, check))?;
            regions[..scanned.found].iter().for_each(&mut each);
            if scanned.walk_end <= query.range.start {
                return Err(ScanError::Io(io::Error::other("the scan made no progress")));
            }
            query.range.start = scanned.walk_end;
        }
        Ok(())
    }

    /// Whether the first and the last page of a range are in registered mappings.
    ///
    /// An unmapped hole raises no error in a scan, not even with PM_SCAN_CHECK_WPASYNC: there is no mapping to check. So these two pages are
    /// asked for by themselves. Regions appear and vanish as a whole; a hole in the middle of one is left to discovery.
    ///
    /// # Errors
    /// [`ScanError::NotWatched`] if one isn't.
    pub fn watched(&self, range: Range<Hva>) -> Result<(), ScanError> {
        if range.is_empty() {
            return Ok(());
        }
        let page = PAGE_SIZE as u64;
        for start in [range.start, Hva(range.end.0 - page)] {
            let query = Query {
                range: start..start.add(page),
                mask: PAGE_IS_WPALLOWED,
                any_of: 0,
                returned: PAGE_IS_WPALLOWED,
            };
            let scanned = query.run(&self.file, true, &mut [EMPTY; 1]).map_err(|e| self.explain(e, true))?;
            if scanned.found == 0 {
                return Err(if self.process.alive() { ScanError::NotWatched } else { ScanError::Gone });
            }
        }
        Ok(())
    }

    fn explain(&self, error: Errno, check: bool) -> ScanError {
        match error {
            Errno::SRCH => ScanError::Gone,
            _ if !self.process.alive() => ScanError::Gone,
            Errno::PERM if check => ScanError::NotWatched,
            Errno::NOTTY => ScanError::Unsupported(error.into()),
            _ => ScanError::Io(error.into()),
        }
    }
}

/// Present or swapped out. A page-table marker (the write protection of an empty page) counts as swapped.
const POPULATED: u32 = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
const EMPTY: page_region = page_region { start: 0, end: 0, categories: 0 };

/// One scan: pages that have all of `mask` and one of `any_of`, in runs of equal `returned`.
struct Query {
    range: Range<Hva>,
    mask: u32,
    any_of: u32,
    returned: u32,
}

/// What one call found.
struct Scanned {
    found: usize,
    walk_end: Hva,
}

impl Query {
    fn run(&self, file: &File, check: bool, regions: &mut [page_region]) -> Result<Scanned, Errno> {
        let argument = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: if check { u64::from(PM_SCAN_CHECK_WPASYNC) } else { 0 },
            start: self.range.start.0,
            end: self.range.end.0,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: u64::from(self.mask),
            category_anyof_mask: u64::from(self.any_of),
            return_mask: u64::from(self.returned),
        };
        // SAFETY: `Scan` describes the ioctl as the kernel does; `vec` and `vec_len` are those of a slice that is
        // mutably borrowed until the call has returned.
        unsafe { ioctl(file, Scan(argument)) }
    }
}

/// `_IOWR('f', 16, struct pm_scan_arg)`
struct Scan(pm_scan_arg);

// SAFETY: the opcode is the kernel's (include/uapi/linux/fs.h), the pointer is to the structure that opcode wants, and
// the kernel writes only to that structure and to the vector it names.
unsafe impl Ioctl for Scan {
    type Output = Scanned;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<pm_scan_arg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    // SAFETY: rustix calls it with the pointer from `as_ptr`, once the kernel has returned.
    unsafe fn output_from_ptr(
        found: IoctlOutput,
        pointer: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        // SAFETY: the pointer is the one from `as_ptr`.
        let argument = unsafe { &*pointer.cast::<pm_scan_arg>() };
        let found = usize::try_from(found).map_err(|_| Errno::INVAL)?;
        Ok(Scanned { found, walk_end: Hva(argument.walk_end) })
    }
}
