//! An io_uring that reads a file into guest memory, by plain requests or through registered buffers (include/uapi/linux/io_uring.h).
//! Owns the ring, its mappings and the file.
#![expect(
    unsafe_code,
    reason = "system calls and memory shared with the kernel, through which it writes guest memory"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

type Result<T> = std::result::Result<T, String>;

const ENTRIES: u32 = 1;
const OFFSET_SUBMISSIONS: i64 = 0;
const OFFSET_COMPLETIONS: i64 = 0x800_0000;
const OFFSET_REQUESTS: i64 = 0x1000_0000;
const REGISTER_BUFFERS: u32 = 0;
const UNREGISTER_BUFFERS: u32 = 1;
const ENTER_GETEVENTS: u32 = 1;
const OP_READ_FIXED: u8 = 4;
const OP_READ: u8 = 22;
/// Bytes of a mapping of the rings: with one entry each is smaller than a page.
const RING: usize = 4096;

/// `struct io_sqring_offsets` and `struct io_cqring_offsets`: both begin with head and tail, and have ten words in all.
type Offsets = [u32; 10];

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    submissions: u32,
    completions: u32,
    flags: u32,
    thread: [u32; 2],
    features: u32,
    other: [u32; 4],
    submission_offsets: Offsets,
    completion_offsets: Offsets,
}

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    opcode: u8,
    flags: u8,
    priority: u16,
    file: i32,
    offset: u64,
    address: u64,
    len: u32,
    read_flags: u32,
    user_data: u64,
    buffer: u16,
    rest: [u16; 11],
}

/// The ring and the file that is read.
pub(crate) struct Uring {
    ring: OwnedFd,
    file: File,
    submissions: *mut u8,
    completions: *mut u8,
    requests: *mut Request,
    at: Parameters,
}

// SAFETY: the mappings stay for the life of the process, and the value is used under a lock.
unsafe impl Send for Uring {}

impl Uring {
    /// Makes a ring that reads the file at `path`.
    pub(crate) fn open(path: &str) -> Result<Self> {
        let file = File::open(path).map_err(|e| format!("{path}: {e}"))?;
        let mut at = Parameters::default();
        // SAFETY: the parameters are as long as the kernel's; the descriptor is new.
        let ring = unsafe {
            let fd =
                outcome("io_uring_setup", libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut at))?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        let submissions = map(&ring, OFFSET_SUBMISSIONS)?;
        let completions = map(&ring, OFFSET_COMPLETIONS)?;
        let requests = map(&ring, OFFSET_REQUESTS)?.cast();
        Ok(Self { ring, file, submissions, completions, requests, at })
    }

    /// Lets the kernel pin a buffer for as long as the ring lives.
    pub(crate) fn register(&self, address: usize, len: usize) -> Result<()> {
        let buffer = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len };
        let fd = self.ring.as_raw_fd();
        // SAFETY: one iovec, of guest RAM, which may change at any time.
        let result =
            unsafe { libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_BUFFERS, &raw const buffer, 1) };
        outcome("register a buffer", result).map(drop)
    }

    /// The opposite.
    pub(crate) fn unregister(&self) -> Result<()> {
        let (fd, nothing) = (self.ring.as_raw_fd(), ptr::null::<u8>());
        // SAFETY: no pointer is passed.
        let result =
            unsafe { libc::syscall(libc::SYS_io_uring_register, fd, UNREGISTER_BUFFERS, nothing, 0) };
        outcome("unregister the buffer", result).map(drop)
    }

    /// Reads the start of the file to `address` and waits for it. `fixed`: into the registered buffer.
    pub(crate) fn read(&mut self, address: usize, len: usize, fixed: bool) -> Result<usize> {
        let request = Request {
            opcode: if fixed { OP_READ_FIXED } else { OP_READ },
            file: self.file.as_raw_fd(),
            address: address as u64,
            len: u32::try_from(len).map_err(|_| "that is too much for one request".to_owned())?,
            ..Request::default()
        };
        let [_, tail, _, _, _, _, array, ..] = self.at.submission_offsets.map(|offset| offset as usize);
        let [head, _, _, _, _, entries, ..] = self.at.completion_offsets.map(|offset| offset as usize);
        // SAFETY: the offsets are the kernel's, in mappings of a page; with one entry, index 0 is the only one. Head and tail are shared
        // with the kernel and only touched atomically.
        unsafe {
            self.requests.write_volatile(request);
            self.submissions.add(array).cast::<u32>().write_volatile(0);
            AtomicU32::from_ptr(self.submissions.add(tail).cast()).fetch_add(1, Ordering::Release);
            let (fd, nothing) = (self.ring.as_raw_fd(), ptr::null::<u8>());
            let done = libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, ENTER_GETEVENTS, nothing, 0);
            outcome("io_uring_enter", done)?;
            // user data, result: two entries, of which the lower is used by turns.
            let head = AtomicU32::from_ptr(self.completions.add(head).cast());
            let index = head.load(Ordering::Acquire) as usize % self.at.completions as usize;
            let result = self.completions.add(entries + index * 16 + 8).cast::<i32>().read_volatile();
            head.fetch_add(1, Ordering::Release);
            usize::try_from(result).map_err(|_| format!("error {} of the read", -result))
        }
    }
}

fn map(ring: &OwnedFd, offset: i64) -> Result<*mut u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start =
        unsafe { libc::mmap(ptr::null_mut(), RING, access, libc::MAP_SHARED, ring.as_raw_fd(), offset) };
    if start == libc::MAP_FAILED {
        Err(format!("map the ring: {}", io::Error::last_os_error()))
    } else {
        Ok(start.cast())
    }
}

fn outcome(what: &str, result: i64) -> Result<i64> {
    if result < 0 { Err(format!("{what}: {}", io::Error::last_os_error())) } else { Ok(result) }
}
