//! Lists every `kvm-vm` file on the host with its memory slots: an iterator over the open files of all tasks.
//!
//! The slots are protected by a lock an iterator cannot take, so what is read may change meanwhile. KVM gives each change of the slots a
//! new generation (with a bit that says "in progress"), and swaps whole sets: the set and its generation being the same before and after
//! the walk means that it was not touched.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::{
    bindings::seq_file,
    helpers::{bpf_loop, generated::bpf_seq_write},
};
use indexer_common::{
    marks::ADDRESS_SPACES,
    records::{CHANGING, MAX_SLOTS, Record, SLOT, TRUNCATED, VM},
};

use crate::{files::read, offsets::offset, opaque};

/// Magic number of the file system anonymous inodes live in (linux/magic.h). Only the kernel can make files there, so a file in it with
/// this name is KVM's: `kvm_vm_ioctl_create` in virt/kvm/kvm_main.c.
const ANON_INODE_FS: u64 = 0x0904_1934;
const NAME: [u8; 7] = *b"kvm-vm\0";

/// KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS (include/linux/kvm_host.h).
const IN_PROGRESS: u64 = 1 << 63;

/// What the kernel passes to the program: `struct bpf_iter__task_file`, the fixed interface of this kind of program.
#[repr(C)]
struct Context {
    meta: *const Meta,
    task: *const c_void,
    fd: u32,
    unused: u32,
    file: *const c_void,
}

/// `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// Where the walk through a set of slots is.
struct Walk {
    seq: *mut seq_file,
    /// `struct kvm_memslots *`
    slots: u64,
    /// Of the two list nodes each slot has, the one this set uses.
    node_index: u64,
    /// Next bucket of the hash table.
    bucket: u64,
    /// Next node of its list, or 0.
    node: u64,
    /// Slots written for this VM so far.
    written: u32,
    done: u32,
}

/// Called for each open file of each task, and once more without one at the end.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
fn memslots(context: *const Context) -> i32 {
    // SAFETY: the kernel passes a valid context; its pointers may be null.
    unsafe {
        let (task, file) = ((*context).task, (*context).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let seq = (*(*context).meta).seq;
        let _ = vm(seq, task as u64, file as u64, (*context).fd);
    }
    0
}

/// Writes the records of one file.
/// # Safety
/// `seq` must be the one that the kernel handed to the program.
#[inline(always)]
unsafe fn vm(seq: *mut seq_file, task: u64, file: u64, fd: u32) -> Result<(), i32> {
    // SAFETY: every read goes through the helper, which checks addresses and fails instead of faulting.
    unsafe {
        let inode: u64 = read(file, offset!(files.file_inode))?;
        let sb: u64 = read(inode, offset!(files.inode_sb))?;
        if read::<u64>(sb, offset!(files.sb_magic))? != ANON_INODE_FS {
            return Ok(());
        }
        let dentry: u64 = read(file, offset!(kvm.file_dentry))?;
        let name: u64 = read(dentry, offset!(kvm.dentry_name))?;
        if read::<[u8; 7]>(name, 0)? != NAME {
            return Ok(());
        }
        let kvm: u64 = read(file, offset!(kvm.file_private))?;
        let mm: u64 = read(kvm, offset!(kvm.mm))?;
        if mm != read::<u64>(task, offset!(kvm.task_mm))? {
            return Ok(()); // somebody else's VM, held open
        }
        let mut record = Record {
            kind: VM,
            id: read(task, offset!(kvm.task_tgid))?,
            flags: 0,
            fd,
            address: kvm,
            values: [0; ADDRESS_SPACES],
        };
        let mut written = opaque::zero() as u32;
        let spaces = offset!(kvm.address_spaces);
        let mut space = 0;
        while space < ADDRESS_SPACES {
            if space < spaces {
                let pointer = kvm + (offset!(kvm.memslots) + space * 8) as u64;
                let slots: u64 = read(pointer, 0)?;
                let generation: u64 = read(slots, offset!(kvm.generation))?;
                let node_index: u32 = read(slots, offset!(kvm.node_idx))?;
                let mut walk = Walk {
                    seq,
                    slots,
                    node_index: u64::from(node_index),
                    bucket: opaque::zero(),
                    node: opaque::zero(),
                    written,
                    done: opaque::zero() as u32,
                };
                bpf_loop(2 * MAX_SLOTS, step as *mut c_void, (&raw mut walk).cast(), 0);
                written = walk.written;
                if walk.done == 0 {
                    record.flags |= TRUNCATED;
                }
                if generation & IN_PROGRESS != 0
                    || read::<u64>(pointer, 0)? != slots
                    || read::<u64>(slots, offset!(kvm.generation))? != generation
                {
                    record.flags |= CHANGING;
                }
                record.values[space] = generation;
            }
            space += 1;
        }
        emit(seq, &record);
    }
    Ok(())
}

/// One step of the walk: a bucket or a slot; 1 ends the loop.
extern "C" fn step(_: u64, walk: *mut Walk) -> u64 {
    // SAFETY: `vm` passed a pointer to a `Walk` that nobody else uses meanwhile.
    let walk = unsafe { &mut *walk };
    if walk.node == 0 {
        if walk.bucket >= offset!(kvm.buckets) as u64 {
            walk.done = 1;
            return 1;
        }
        let bucket = walk.slots + offset!(kvm.id_hash) as u64 + walk.bucket * offset!(kvm.bucket_size) as u64;
        walk.bucket += 1;
        // SAFETY: see `vm`.
        return match unsafe { read(bucket, offset!(kvm.hlist_first)) } {
            Ok(node) => {
                walk.node = node;
                0
            }
            Err(_) => 1,
        };
    }
    if walk.written >= MAX_SLOTS {
        return 1;
    }
    // SAFETY: see `vm`.
    match unsafe { slot(walk) } {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Writes the slot whose list node the walk stands at, and goes on to the next.
/// # Safety
/// The `seq` of the walk must be the one that the kernel handed to the program.
#[inline(always)]
unsafe fn slot(walk: &mut Walk) -> Result<(), i32> {
    // SAFETY: see `vm`.
    unsafe {
        let node = walk.node;
        let slot = node - offset!(kvm.slot_id_node) as u64 - walk.node_index * offset!(kvm.node_size) as u64;
        let number: u16 = read(slot, offset!(kvm.slot_id))?;
        let space: u16 = read(slot, offset!(kvm.slot_as_id))?;
        let record = Record {
            kind: SLOT,
            id: u32::from(space) << 16 | u32::from(number),
            flags: read(slot, offset!(kvm.slot_flags))?,
            fd: 0,
            address: read(slot, offset!(kvm.slot_base_gfn))?,
            values: [read(slot, offset!(kvm.slot_npages))?, read(slot, offset!(kvm.slot_hva))?],
        };
        walk.node = read(node, offset!(kvm.hlist_next))?;
        walk.written += 1;
        emit(walk.seq, &record);
    }
    Ok(())
}

/// Writes a record to whoever reads the iterator. If it does not fit the kernel's buffer, the kernel calls the program for this file
/// once more, with an empty one.
/// # Safety
/// `seq` must be the one that the kernel handed to the program.
#[inline(always)]
unsafe fn emit(seq: *mut seq_file, record: &Record) {
    // SAFETY: `seq` is the kernel's own; the record is on the stack and has no padding.
    unsafe {
        bpf_seq_write(seq, core::ptr::from_ref(record).cast(), size_of::<Record>() as u32);
    }
}
