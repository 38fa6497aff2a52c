//! Where the running kernel keeps what the programs read.
//!
//! The daemon takes these from the tracepoints' `format` files and from BTF, and hands them to the programs as read-only globals before
//! loading, so that the verifier sees constants. None has a default: a program whose offsets could not be found is not loaded.

use core::mem::size_of;

/// Offsets in bytes, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Offsets {
    /// Tracepoint `kvm:kvm_page_fault`.
    pub kvm_page_fault: Fault,
    /// Tracepoint `exceptions:page_fault_user`.
    pub page_fault_user: Fault,
    /// Tracepoint `exceptions:page_fault_kernel`.
    pub page_fault_kernel: Fault,
    /// Tracepoint `kvm:kvm_dirty_ring_push`.
    pub dirty_ring: DirtyRing,
    /// Arguments of the system calls' tracepoints.
    pub arguments: Arguments,
    /// Arguments of `mmap`.
    pub mmap: Mmap,
    /// From a task to an open file's inode.
    pub files: Files,
    /// From an open file to KVM's memslots.
    pub kvm: Kvm,
    /// From a mapping to the process it is of.
    pub mapping: Mapping,
    /// Arguments of the system calls that map memory anew.
    pub remaps: Remaps,
    /// Tracepoint `kvm:kvm_try_async_get_page`.
    pub async_page: AsyncPage,
}

/// Tracepoint `kvm:kvm_try_async_get_page`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct AsyncPage {
    /// Guest frame number, 8 bytes.
    pub gfn: u32,
    /// Pads to a multiple of 8.
    pub unused: u32,
}

/// A tracepoint that reports a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Fault {
    /// Address, 8 bytes.
    pub address: u32,
    /// Page-fault error code.
    pub error_code: u32,
}

/// Tracepoint `kvm:kvm_dirty_ring_push`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct DirtyRing {
    /// Address space and slot, 4 bytes.
    pub slot: u32,
    /// Page in the slot, 8 bytes.
    pub offset: u32,
}

/// Arguments of system calls in their `sys_enter` tracepoints, each 8 bytes wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Arguments {
    /// fallocate: fd.
    pub fallocate_fd: u32,
    /// fallocate: mode.
    pub fallocate_mode: u32,
    /// fallocate: offset.
    pub fallocate_offset: u32,
    /// fallocate: length.
    pub fallocate_len: u32,
    /// madvise: start.
    pub madvise_start: u32,
    /// madvise: length.
    pub madvise_len: u32,
    /// madvise: advice.
    pub madvise_behavior: u32,
    /// `process_madvise`: advice.
    pub process_madvise_behavior: u32,
    /// ftruncate: fd.
    pub ftruncate_fd: u32,
    /// mlock: start.
    pub mlock_start: u32,
    /// mlock: length.
    pub mlock_len: u32,
}

/// Arguments of `mmap` in its `sys_enter` tracepoint, each 8 bytes wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Mmap {
    /// Protection.
    pub prot: u32,
    /// Flags.
    pub flags: u32,
    /// Descriptor.
    pub fd: u32,
    /// No offset: the daemon's own process id, whose mappings do not count.
    pub daemon: u32,
}

/// `task->files->fdt->fd[n]->f_inode->{i_ino, i_sb->{s_dev, s_magic}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Files {
    /// 1 if the rest of this struct is known.
    pub known: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.max_fds`
    pub fdt_max: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_ino`
    pub inode_number: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `super_block.s_dev`
    pub sb_device: u32,
    /// `super_block.s_magic`
    pub sb_magic: u32,
}

/// Members of KVM's structs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Kvm {
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `file.f_path`, in it `path.dentry`
    pub file_dentry: u32,
    /// `dentry.d_name`, in it `qstr.name`
    pub dentry_name: u32,
    /// `file.private_data`
    pub file_private: u32,
    /// `kvm.mm`
    pub mm: u32,
    /// `kvm.memslots`
    pub memslots: u32,
    /// Number of pointers in `kvm.memslots`.
    pub address_spaces: u32,
    /// `kvm_memslots.generation`
    pub generation: u32,
    /// `kvm_memslots.id_hash`
    pub id_hash: u32,
    /// Number of buckets in `kvm_memslots.id_hash`.
    pub buckets: u32,
    /// Size of `struct hlist_head`.
    pub bucket_size: u32,
    /// `hlist_head.first`
    pub hlist_first: u32,
    /// `hlist_node.next`
    pub hlist_next: u32,
    /// `kvm_memslots.node_idx`
    pub node_idx: u32,
    /// `kvm_memory_slot.id_node`
    pub slot_id_node: u32,
    /// Size of `struct hlist_node`.
    pub node_size: u32,
    /// `kvm_memory_slot.base_gfn`
    pub slot_base_gfn: u32,
    /// `kvm_memory_slot.npages`
    pub slot_npages: u32,
    /// `kvm_memory_slot.userspace_addr`
    pub slot_hva: u32,
    /// `kvm_memory_slot.flags`
    pub slot_flags: u32,
    /// `kvm_memory_slot.id`
    pub slot_id: u32,
    /// `kvm_memory_slot.as_id`
    pub slot_as_id: u32,
    /// No offset: 1 if KVM uses two-dimensional paging (EPT, NPT), so that its page faults name guest physical addresses.
    pub two_dimensional: u32,
}

/// `vma->vm_mm->owner->tgid`, and whose process is the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Mapping {
    /// `vm_area_struct.vm_mm`
    pub vma_mm: u32,
    /// `mm_struct.owner`
    pub mm_owner: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// No offset: the daemon's own process id.
    pub daemon: u32,
}

/// Arguments of `mmap`, `munmap` and `mremap` in their `sys_enter` tracepoints, each 8 bytes wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Remaps {
    /// mmap: address.
    pub mmap_addr: u32,
    /// mmap: length.
    pub mmap_len: u32,
    /// mmap: flags.
    pub mmap_flags: u32,
    /// munmap: address.
    pub munmap_addr: u32,
    /// munmap: length.
    pub munmap_len: u32,
    /// mremap: old address.
    pub mremap_addr: u32,
    /// mremap: old length.
    pub mremap_old_len: u32,
    /// mremap: flags.
    pub mremap_flags: u32,
    /// No offset: 1 if such calls are counted like those that discard memory, so that their ends are seen too.
    pub counted: u32,
}

const _: () = assert!(size_of::<Offsets>() == 4 * (3 * 2 + 2 + 11 + 4 + 10 + 24 + 4 + 9 + 2)); // all are u32: no padding
