//! What the memslot iterator writes: for each `kvm-vm` file its slots, then the VM itself as the last record.

use core::mem::size_of;

use crate::marks::ADDRESS_SPACES;

/// One record. A VM's slots come before the record of the VM, because only at the end is known whether all were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// [`SLOT`] or [`VM`].
    pub kind: u32,
    /// Slot: address space in the upper, number in the lower 16 bits. VM: process id.
    pub id: u32,
    /// Slot: `KVM_MEM_*` flags. VM: [`CHANGING`], [`TRUNCATED`].
    pub flags: u32,
    /// VM: number of the file descriptor.
    pub fd: u32,
    /// Slot: first guest page. VM: address of its `struct kvm`.
    pub address: u64,
    /// Slot: pages, address in the VMM. VM: generation for each address space.
    pub values: [u64; ADDRESS_SPACES],
}

/// [`Record::kind`]: a memory slot.
pub const SLOT: u32 = 1;
/// [`Record::kind`]: a VM; ends the slots before it.
pub const VM: u32 = 2;
/// [`Record::flags`] of a VM: its slots changed while they were read.
pub const CHANGING: u32 = 1;
/// [`Record::flags`] of a VM: it has more slots than [`MAX_SLOTS`].
pub const TRUNCATED: u32 = 2;
/// Most slots reported of a VM: what one VM writes has to fit the 32 KiB the kernel gives an iterator for one file, or the whole
/// iteration fails, for all VMs.
pub const MAX_SLOTS: u32 = 800;

const _: () = assert!(size_of::<Record>() == 40 && size_of::<Record>() * (MAX_SLOTS as usize + 1) <= 32768);
