//! A disk that reads into guest memory by direct I/O, as a VMM with `cache=none` does. Owns the open file and the requests under way.
#![expect(unsafe_code, reason = "system calls that let the kernel write guest memory, now or later")]

use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::Arc,
    thread::JoinHandle,
};

type Result<T> = std::result::Result<T, String>;

/// How a request is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// By a thread that waits in pread(2).
    Pread,
    /// By io_submit(2), as `aio=native`.
    Aio,
}

/// The file and what has been asked of it.
#[derive(Default)]
pub(crate) struct Disk {
    file: Option<Arc<File>>,
    under_way: Vec<JoinHandle<Result<usize>>>,
}

impl Disk {
    pub(crate) fn open(&mut self, path: &str) -> Result<()> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
        self.file = Some(Arc::new(file.map_err(|e| format!("{path}: {e}"))?));
        Ok(())
    }

    /// Requests under way go on.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    /// Reads the start of the file to `address`, in the background. The memory must stay mapped.
    pub(crate) fn read(&mut self, address: usize, len: usize, how: How) -> Result<()> {
        let file = Arc::clone(self.file.as_ref().ok_or("no disk is open")?);
        let read = match how {
            How::Pread => pread,
            How::Aio => aio,
        };
        // The file is let go of when the request is done, like that of a request in the kernel.
        self.under_way.push(std::thread::spawn(move || read(&file, address, len)));
        Ok(())
    }

    /// Waits for all that was submitted; returns how many bytes came.
    pub(crate) fn wait(&mut self) -> Result<usize> {
        let done =
            self.under_way.drain(..).map(|thread| thread.join().map_err(|_| "it panicked".to_owned())?);
        done.sum()
    }
}

fn outcome(result: i64) -> Result<usize> {
    usize::try_from(result).map_err(|_| std::io::Error::last_os_error().to_string())
}

fn pread(file: &File, address: usize, len: usize) -> Result<usize> {
    // SAFETY: the range is guest RAM, which may change at any time, and stays mapped.
    let bytes = unsafe { libc::pread(file.as_raw_fd(), address as *mut libc::c_void, len, 0) };
    outcome(bytes as i64)
}

/// `struct iocb` of include/uapi/linux/aio_abi.h, little endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

fn aio(file: &File, address: usize, len: usize) -> Result<usize> {
    let mut context: libc::c_ulong = 0;
    // IOCB_CMD_PREAD is 0.
    let request = Iocb {
        file: file.as_raw_fd().cast_unsigned(),
        buffer: address as u64,
        bytes: len as u64,
        ..Iocb::default()
    };
    let mut event = IoEvent::default();
    // SAFETY: the pointers are to live values of the types that the kernel expects; the buffer is guest RAM, which may change at any time and
    // stays mapped.
    unsafe {
        outcome(libc::syscall(libc::SYS_io_setup, 1, &raw mut context))?;
        let requests = [&raw const request];
        outcome(libc::syscall(libc::SYS_io_submit, context, 1, requests.as_ptr()))?;
        let nothing = std::ptr::null::<libc::timespec>();
        outcome(libc::syscall(libc::SYS_io_getevents, context, 1, 1, &raw mut event, nothing))?;
        libc::syscall(libc::SYS_io_destroy, context);
    }
    usize::try_from(event.result).map_err(|_| format!("error {} of the disk", -event.result))
}
