//! Which of a VM's RAM files a file descriptor of the running process stands for.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_task, bpf_loop, bpf_probe_read_kernel};
use indexer_common::marks::{DOUBT_FILES, Header, MAX_FILES};

use crate::{offsets::offset, opaque, vm::Vm};

/// File systems whose inodes report another device to `stat` than their super block's (linux/magic.h): there the inode number decides alone.
const OVERLAYFS: u64 = 0x794c_7630;
const BTRFS: u64 = 0x9123_683e;

/// What a file descriptor stands for.
pub enum Which {
    /// RAM file of this index.
    Ram(u32),
    /// A file that is no RAM of this VM.
    Other,
    /// Could not be told.
    Unknown,
}

/// Looks a descriptor of the running process up.
///
/// Another thread that swaps the descriptor between this look and the system call's own can mislead it, but only a VMM that means to
/// deceive the index about its own pages does that.
#[inline(always)]
pub fn which(vm: &Vm, fd: u64) -> Which {
    if offset!(files.known) == 0 || vm.header.doubts & DOUBT_FILES != 0 {
        return Which::Unknown;
    }
    // SAFETY: every read goes through the helper, which checks addresses and fails instead of faulting.
    let Ok((inode, device, magic)) = (unsafe { identity(fd) }) else {
        return Which::Unknown;
    };
    let any_device = magic == OVERLAYFS || magic == BTRFS;
    let mut compare = Compare {
        header: vm.header,
        inode,
        device,
        any_device,
        index: opaque::zero() as u32,
        found: opaque::zero() != 0,
    };
    // SAFETY: the kernel calls `step` with a pointer to `compare`, which outlives the call.
    unsafe { bpf_loop(MAX_FILES as u32, step as *mut c_void, (&raw mut compare).cast(), 0) };
    if compare.found { Which::Ram(compare.index) } else { Which::Other }
}

/// A search through the RAM files.
struct Compare {
    header: &'static Header,
    inode: u64,
    device: u32,
    any_device: bool,
    found: bool,
    index: u32,
}

/// Compares one file; 1 ends the search.
extern "C" fn step(_: u64, compare: *mut Compare) -> u64 {
    // SAFETY: `which` passed a pointer to a `Compare` that nobody else uses meanwhile.
    let compare = unsafe { &mut *compare };
    let index = compare.index;
    if index >= compare.header.file_count || index >= MAX_FILES as u32 {
        return 1;
    }
    let file = &compare.header.file[index as usize];
    if file.inode == compare.inode && (compare.any_device || file.device == compare.device) {
        compare.found = true;
        return 1;
    }
    compare.index = index + 1;
    0
}

/// Inode number, device and the file system's magic number.
/// # Safety
/// None needed: every read goes through the helper, which checks addresses.
#[inline(always)]
pub unsafe fn identity(fd: u64) -> Result<(u64, u32, u64), i32> {
    // SAFETY: see `which`.
    unsafe {
        let task = bpf_get_current_task();
        let files: u64 = read(task, offset!(files.task_files))?;
        let table: u64 = read(files, offset!(files.files_fdt))?;
        let max: u32 = read(table, offset!(files.fdt_max))?;
        let fd = fd as u32;
        if fd >= max {
            return Err(-9);
        }
        let array: u64 = read(table, offset!(files.fdt_fd))?;
        let file: u64 = read(array, fd as usize * 8)?;
        let inode: u64 = read(file, offset!(files.file_inode))?;
        let sb: u64 = read(inode, offset!(files.inode_sb))?;
        let number: u64 = read(inode, offset!(files.inode_number))?;
        let device: u32 = read(sb, offset!(files.sb_device))?;
        let magic: u64 = read(sb, offset!(files.sb_magic))?;
        Ok((number, device, magic))
    }
}

/// Reads kernel memory.
///
/// # Safety
/// None needed by the kernel: the helper checks. `T` must be made of integers.
#[inline(always)]
pub unsafe fn read<T>(base: u64, offset: usize) -> Result<T, i32> {
    // SAFETY: see above.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T) }
}
