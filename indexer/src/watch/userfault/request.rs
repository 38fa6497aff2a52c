//! The system call `userfaultfd` and its ioctls (include/uapi/linux/userfaultfd.h), with a safe face.
#![expect(unsafe_code, reason = "ioctls that no safe crate offers")]

use std::{
    io,
    ops::Range,
    os::fd::{FromRawFd, OwnedFd},
};

use linux_raw_sys::general::UFFD_API;
use rustix::{
    io::Errno,
    ioctl::{Opcode, Setter, Updater, ioctl, opcode},
};

use crate::units::Hva;

/// A new descriptor in the daemon's own process.
pub(super) fn own(flags: u64) -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that nobody else knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// UFFDIO_API: chooses the features, once for each descriptor.
pub(super) fn initialize(fd: &OwnedFd, features: u64) -> Result<(), Errno> {
    let mut argument = Api { api: UFFD_API.into(), features, ioctls: 0 };
    // SAFETY: the opcode goes with the structure.
    unsafe { ioctl(fd, Updater::<{ operation::API }, _>::new(&mut argument)) }
}

/// UFFDIO_REGISTER.
pub(super) fn register(fd: &OwnedFd, range: &Range<Hva>, mode: u32) -> Result<(), Errno> {
    let mut argument = Register { range: Span::from(range), mode: mode.into(), ioctls: 0 };
    // SAFETY: the opcode goes with the structure. What is changed is how faults in the range are handled, in the address space the
    // descriptor was made in; the daemon's own is only ever changed for mappings whose owner asked for it.
    unsafe { ioctl(fd, Updater::<{ operation::REGISTER }, _>::new(&mut argument)) }
}

/// UFFDIO_UNREGISTER.
pub(super) fn unregister(fd: &OwnedFd, range: &Range<Hva>) -> Result<(), Errno> {
    // SAFETY: as in `register`.
    unsafe { ioctl(fd, Setter::<{ operation::UNREGISTER }, _>::new(Span::from(range))) }
}

/// UFFDIO_WRITEPROTECT, arming.
pub(super) fn write_protect(fd: &OwnedFd, range: &Range<Hva>) -> Result<(), Errno> {
    let mut argument = WriteProtect { range: Span::from(range), mode: WRITEPROTECT_MODE_WP };
    // SAFETY: as in `register`.
    unsafe { ioctl(fd, Updater::<{ operation::WRITEPROTECT }, _>::new(&mut argument)) }
}

/// `UFFDIO_WRITEPROTECT_MODE_WP`
const WRITEPROTECT_MODE_WP: u64 = 1;

/// Type 0xAA and the numbers of include/uapi/linux/userfaultfd.h. UNREGISTER is declared there as a *read* although the kernel
/// only reads the argument.
mod operation {
    use super::{Api, Opcode, Register, Span, WriteProtect, opcode};

    pub(super) const API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
    pub(super) const REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
    pub(super) const UNREGISTER: Opcode = opcode::read::<Span>(0xaa, 0x01);
    pub(super) const WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(0xaa, 0x06);
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Span {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Span,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    range: Span,
    mode: u64,
}

impl From<&Range<Hva>> for Span {
    fn from(range: &Range<Hva>) -> Self {
        Self { start: range.start.0, len: range.end.0.saturating_sub(range.start.0) }
    }
}
