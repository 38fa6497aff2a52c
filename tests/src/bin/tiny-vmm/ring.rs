//! KVM's dirty ring of one vCPU (Documentation/virt/kvm/api.rst, 8.29). Owns the ring's mapping and its read
//! position; kvm-ioctls has no calls for it.
#![expect(unsafe_code, reason = "maps the ring and reads what the kernel puts there")]

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::ram::PAGE;

/// Entries in the ring; several times what KVM keeps in reserve.
const ENTRIES: usize = 4096;
/// `_IO(KVMIO, 0xc7)`
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;
/// Set by KVM: the entry names a dirty page.
const DIRTY: u32 = 1;
/// Set by the VMM: the entry has been read, KVM may protect the page again.
const RESET: u32 = 2;

/// The ring of a vCPU.
pub(crate) struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    next: usize,
}

// SAFETY: the mapping stays for the life of the process, and the value is used under the vCPU's lock.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Pages the guest may write between two harvests; each of its writes to a page can take an entry.
    pub(crate) const PAGES_AT_ONCE: u64 = ENTRIES as u64 / 8;

    /// Switches the VM to the dirty ring; must come before its first vCPU.
    pub(crate) fn enable(vm: &VmFd) -> Result<(), String> {
        let size = ENTRIES * size_of::<kvm_dirty_gfn>();
        let cap = kvm_enable_cap {
            cap: KVM_CAP_DIRTY_LOG_RING,
            args: [size as u64, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&cap).map_err(|e| format!("KVM_CAP_DIRTY_LOG_RING: {e}"))
    }

    /// Maps the ring of a vCPU.
    pub(crate) fn map(vcpu: &VcpuFd) -> Result<Self, String> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let size = ENTRIES * size_of::<kvm_dirty_gfn>();
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE;
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let entries = unsafe {
            mmap(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, offset)
        };
        Ok(Self { entries: entries.map_err(|e| format!("map the dirty ring: {e}"))?.cast(), next: 0 })
    }

    /// Takes all entries and lets KVM protect their pages again; returns how many there were.
    pub(crate) fn harvest(&mut self, vm: &VmFd) -> Result<u64, String> {
        let mut taken = 0;
        loop {
            // SAFETY: `next % ENTRIES` is within the mapping; the flags word is shared with the kernel and
            // therefore only touched atomically.
            let flags =
                unsafe { AtomicU32::from_ptr(&raw mut (*self.entries.add(self.next % ENTRIES)).flags) };
            if flags.load(Ordering::Acquire) & DIRTY == 0 {
                break;
            }
            flags.store(RESET, Ordering::Release);
            self.next += 1;
            taken += 1;
        }
        if taken > 0 {
            // SAFETY: the ioctl takes no argument.
            let result = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS) };
            if result < 0 {
                return Err(format!("KVM_RESET_DIRTY_RINGS: {}", std::io::Error::last_os_error()));
            }
        }
        Ok(taken)
    }
}
