//! Guest RAM of the tiny VMM: one mapping, and what a VMM may do to it behind the guest's back. Owns the mapping
//! and its file; knows nothing of KVM.
#![expect(unsafe_code, reason = "maps memory and hands its address to KVM and to system calls")]

use std::{
    fs::{File, OpenOptions},
    io::Read,
    path::PathBuf,
};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, SeekFrom, fallocate, ftruncate, memfd_create, seek},
    io::Errno,
    mm::{
        Advice, MapFlags, MremapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, mremap_fixed, munmap,
    },
};

/// Bytes in a page.
pub(crate) const PAGE: u64 = 4096;
/// RAM starts on a huge page boundary, as in real VMMs.
const ALIGN: u64 = 2 << 20;
/// Where in a page the pattern stands: first bytes, somewhere in the second half, last bytes.
pub(crate) const PATTERN_OFFSETS: [u32; 3] = [0, 2052, 4092];

/// What stands behind the memory.
#[derive(Clone)]
pub(crate) enum RamKind {
    Memfd,
    Anonymous,
    /// A memfd of huge pages of 2 MiB.
    Hugetlb,
    /// A file at this path; further slots append `.ID`.
    File(PathBuf),
}

/// A way to give pages back to the host, or to ask it for them.
#[derive(Clone, Copy)]
pub(crate) enum Advise {
    PunchHole,
    MadviseRemove,
    MadviseDontneed,
    MadvisePopulate,
    Mlock,
    /// Fresh anonymous memory in their place.
    Replace,
}

/// One mapping of guest RAM, with an inaccessible page on both sides so that it never merges with a neighbour.
pub(crate) struct Ram {
    reservation: *mut u8,
    reserved: usize,
    start: *mut u8,
    pages: u64,
    file: Option<File>,
}

// SAFETY: the pointers are to memory that lives as long as the value and that is only reached through volatile or
// kernel writes; the guest writes to it at any time anyway, and nothing here relies on its content.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    pub(crate) fn new(kind: &RamKind, id: u32, pages: u64) -> Result<Self, String> {
        let len = pages * PAGE;
        let file = match kind {
            RamKind::Anonymous => None,
            RamKind::Memfd => Some(memfd(id, MemfdFlags::empty())?),
            RamKind::Hugetlb => Some(memfd(id, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?),
            RamKind::File(path) => {
                let path = if id == 0 { path.clone() } else { format!("{}.{id}", path.display()).into() };
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
                Some(file.map_err(|e| format!("{}: {e}", path.display()))?)
            }
        };
        if let Some(file) = &file {
            file.set_len(len).map_err(|e| format!("set the RAM file's length: {e}"))?;
        }
        let (reservation, reserved, start) = reserve(len as usize)?;
        // SAFETY: MAP_FIXED replaces a part of our own reservation, which nobody uses yet.
        unsafe { map_at(start, len as usize, file.as_ref()) }.map_err(|e| format!("map guest RAM: {e}"))?;
        if file.is_none() {
            // As QEMU does for private RAM. Kernels without huge pages refuse, and then there are none.
            // SAFETY: advice changes no content, and the range is our own.
            let _ = unsafe { madvise(start.cast(), len as usize, Advice::LinuxHugepage) };
        }
        Ok(Self { reservation, reserved, start, pages, file })
    }

    /// Maps fresh anonymous memory in the place of the old; or, if the RAM is a file, that file once more, or an empty one.
    pub(crate) fn remap(&mut self, other_file: bool) -> Result<(), String> {
        let len = (self.pages * PAGE) as usize;
        if other_file {
            let file = memfd(0, MemfdFlags::empty())?;
            file.set_len(len as u64).map_err(|e| format!("set the RAM file's length: {e}"))?;
            self.file = Some(file);
        }
        // SAFETY: MAP_FIXED replaces our own mapping; nothing here refers to its content.
        unsafe { map_at(self.start, len, self.file.as_ref()) }.map_err(|e| format!("map guest RAM anew: {e}"))
    }

    /// Moves the mapping to other addresses. KVM must not have a slot there.
    pub(crate) fn relocate(&mut self) -> Result<(), String> {
        let len = (self.pages * PAGE) as usize;
        let (reservation, reserved, start) = reserve(len)?;
        // SAFETY: both ranges are our own; nobody keeps an address of the old one.
        unsafe {
            mremap_fixed(self.start.cast(), len, len, MremapFlags::MAYMOVE, start.cast())
                .map_err(|e| format!("move guest RAM: {e}"))?;
            let _ = munmap(self.reservation.cast(), self.reserved);
        }
        (self.reservation, self.reserved, self.start) = (reservation, reserved, start);
        Ok(())
    }

    /// Address in this process.
    pub(crate) fn address(&self) -> u64 {
        self.start as u64
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Where pages stand in this process.
    pub(crate) fn at(&self, page: u64, count: u64) -> Result<*mut u8, String> {
        if page + count > self.pages {
            return Err(format!("pages {page}+{count} are outside the slot's {}", self.pages));
        }
        // SAFETY: checked above to lie within the mapping.
        Ok(unsafe { self.start.add((page * PAGE) as usize) })
    }

    /// Copies bytes to the start of a page.
    pub(crate) fn put(&self, page: u64, bytes: &[u8]) -> Result<(), String> {
        let target = self.at(page, (bytes.len() as u64).div_ceil(PAGE))?;
        for (offset, byte) in bytes.iter().enumerate() {
            // SAFETY: `at` has checked the range; volatile, since the guest may look at it at any time.
            unsafe { target.add(offset).write_volatile(*byte) };
        }
        Ok(())
    }

    /// Writes the same pattern as the guest's program.
    pub(crate) fn poke(&self, page: u64, key: u32) -> Result<(), String> {
        let target = self.at(page, 1)?;
        for offset in PATTERN_OFFSETS {
            // SAFETY: every offset and four bytes lie within the page that `at` has checked; each is 4-aligned.
            unsafe { target.add(offset as usize).cast::<u32>().write_volatile(key) };
        }
        Ok(())
    }

    /// Reads a page, as device emulation does: a hole becomes a page of zeros.
    pub(crate) fn peek(&self, page: u64) -> Result<(), String> {
        let target = self.at(page, 1)?;
        // SAFETY: the byte lies within the page that `at` has checked.
        unsafe { target.read_volatile() };
        Ok(())
    }

    /// Makes one huge page of the aligned 2 MiB around a page that is a hole, as khugepaged does in its own time.
    pub(crate) fn collapse(&self, page: u64) -> Result<(), String> {
        const PAGES: u64 = 512;
        let target = self.at(page - page % PAGES, PAGES)?;
        let file = self.file.as_ref().ok_or("anonymous RAM has no holes to fill")?;
        for _ in 0..100 {
            // Whatever it says: where a userfaultfd watches it leaves the page table alone, and calls that a failure.
            // SAFETY: the range is guest RAM; collapsing changes no byte.
            unsafe { libc::madvise(target.cast(), (PAGES * PAGE) as usize, libc::MADV_COLLAPSE) };
            if seek(file, SeekFrom::Data(page * PAGE)) == Ok(page * PAGE) {
                return Ok(());
            }
            // Some page was in use by somebody for a moment.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Err("madvise(COLLAPSE): the hole stays one".to_owned())
    }

    /// Lets the kernel write random bytes into pages.
    pub(crate) fn fill(&self, page: u64, count: u64) -> Result<(), String> {
        let target = self.at(page, count)?;
        // SAFETY: `at` has checked the range. A slice over memory that the guest may write meanwhile is only passed
        // on to read(2), which does not look at it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(target, (count * PAGE) as usize) };
        let mut random = File::open("/dev/urandom").map_err(|e| format!("/dev/urandom: {e}"))?;
        random.read_exact(bytes).map_err(|e| format!("read into guest RAM: {e}"))
    }

    pub(crate) fn advise(&self, page: u64, count: u64, how: Advise) -> Result<(), String> {
        let target = self.at(page, count)?;
        let len = count * PAGE;
        match how {
            Advise::PunchHole => {
                let file = self.file.as_ref().ok_or("anonymous RAM has no file to punch")?;
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, mode, page * PAGE, len).map_err(|e| format!("fallocate: {e}"))
            }
            Advise::Replace if self.file.is_some() => {
                Err("the RAM is a file: map it anew as a whole".to_owned())
            }
            Advise::Replace => {
                // SAFETY: MAP_FIXED replaces a part of our own mapping, whose content nothing here relies on.
                unsafe { map_at(target, len as usize, None) }.map_err(|e| format!("map anew: {e}"))
            }
            Advise::Mlock => {
                // SAFETY: the range is guest RAM; no byte of it changes.
                unsafe { mlock(target.cast(), len as usize) }.map_err(|e| format!("mlock: {e}"))
            }
            Advise::MadviseRemove | Advise::MadviseDontneed | Advise::MadvisePopulate => {
                let advice = match how {
                    Advise::MadviseRemove => Advice::LinuxRemove,
                    Advise::MadvisePopulate => Advice::LinuxPopulateWrite,
                    _ => Advice::LinuxDontNeed,
                };
                // SAFETY: the range is guest RAM, whose content nothing here relies on.
                unsafe { madvise(target.cast(), len as usize, advice) }.map_err(|e| format!("madvise: {e}"))
            }
        }
    }

    pub(crate) fn truncate(&self, pages: u64) -> Result<(), String> {
        let file = self.file.as_ref().ok_or("anonymous RAM has no file to truncate")?;
        ftruncate(file, pages * PAGE).map_err(|e| format!("ftruncate: {e}"))
    }
}

fn memfd(id: u32, flags: MemfdFlags) -> Result<File, String> {
    let fd = memfd_create(format!("tiny-ram-{id}"), MemfdFlags::CLOEXEC | flags);
    fd.map(File::from).map_err(|e| format!("memfd_create: {e}"))
}

/// Inaccessible address space for `len` bytes that begin on a huge page boundary, with a page at least on both sides; where it is,
/// how long, and where the bytes begin.
fn reserve(len: usize) -> Result<(*mut u8, usize, *mut u8), String> {
    let reserved = len + (ALIGN + 2 * PAGE) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let reservation = unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags)
    };
    let reservation = reservation.map_err(|e| format!("reserve address space: {e}"))?.cast::<u8>();
    let offset = (reservation as u64 + PAGE).next_multiple_of(ALIGN) - reservation as u64;
    // SAFETY: the reservation is ALIGN + two pages longer than `len`, so the range lies within it.
    Ok((reservation, reserved, unsafe { reservation.add(offset as usize) }))
}

/// Maps the file, or anonymous memory, over what is at `start`.
///
/// # Safety
/// The range must be the caller's own, and nobody may rely on its content.
unsafe fn map_at(start: *mut u8, len: usize, file: Option<&File>) -> Result<(), Errno> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the caller's promise.
    unsafe {
        match file {
            Some(file) => mmap(start.cast(), len, access, MapFlags::SHARED | MapFlags::FIXED, file, 0),
            None => {
                let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
                mmap_anonymous(start.cast(), len, access, flags)
            }
        }
    }
    .map(drop)
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the reservation with the RAM in it is ours, and its slot has been taken out of the VM before.
        let _ = unsafe { munmap(self.reservation.cast(), self.reserved) };
    }
}
