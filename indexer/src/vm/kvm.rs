//! What is known from KVM: the VMs as the kernel's own tables show them. Owns the type that the kernel-side
//! iterator fills and the few rules on memory slots; never asks the kernel itself.

use crate::vm::{descriptor::Memslot, maps::Vma};

/// One open `kvm-vm` file: a KVM virtual machine, and the process that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmVm {
    /// Process (thread group) that has the file open.
    pub pid: u32,
    /// Number of the file descriptor in that process.
    pub fd: i32,
    /// Memory slots in use.
    pub slots: Vec<Memslot>,
}

/// `KVM_MEM_READONLY` of `linux/kvm.h`: guest writes leave to the VMM, so the slot is ROM.
const READ_ONLY: u32 = 1 << 1;

/// Where guest physical addresses above all 32-bit devices start. Memory that is plugged in later stands there.
pub(crate) const FOUR_GIB: u64 = 1 << 32;

impl Memslot {
    /// Whether the guest can write the slot's memory directly.
    #[must_use]
    pub const fn writable(&self) -> bool {
        self.flags & READ_ONLY == 0
    }

    /// One past the slot's last address in the VMM.
    #[must_use]
    pub const fn hva_end(&self) -> u64 {
        self.hva.0.saturating_add(self.len)
    }

    /// Whether any byte of the slot stands in `[start, end)` of the VMM's address space.
    #[must_use]
    pub const fn overlaps(&self, start: u64, end: u64) -> bool {
        self.hva.0 < end && start < self.hva_end()
    }
}

/// Whether a mapping is a vCPU's dirty ring: the file of the vCPU, from page `KVM_DIRTY_LOG_PAGE_OFFSET` on.
pub(crate) fn is_dirty_ring(vma: &Vma) -> bool {
    const AT: u64 = 64 * 4096;
    vma.offset == AT && vma.path.starts_with(b"anon_inode:kvm-vcpu:")
}

/// The slots of all VMs of one process, in a stable order, and how many different VMs there are.
///
/// A VMM may hold the same VM through several descriptors (`dup`), and then each of them shows the same slots.
pub(crate) fn combine(vms: &[&KvmVm]) -> (Vec<Memslot>, usize) {
    let mut different: Vec<&KvmVm> = Vec::new();
    for vm in vms {
        if !different.iter().any(|seen| seen.slots == vm.slots) {
            different.push(vm);
        }
    }
    let mut slots: Vec<Memslot> = different.iter().flat_map(|vm| vm.slots.iter().copied()).collect();
    slots.sort_by_key(|slot| (slot.id, slot.gpa, slot.hva));
    (slots, different.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Gpa, Hva};

    fn slot(id: u32, hva: u64) -> Memslot {
        Memslot { id, gpa: Gpa(u64::from(id) << 20), len: 1 << 20, hva: Hva(hva), flags: 0 }
    }

    #[test]
    fn the_same_vm_through_two_descriptors_counts_once() {
        let first = KvmVm { pid: 1, fd: 3, slots: vec![slot(1, 0x20_0000), slot(0, 0x10_0000)] };
        let again = KvmVm { fd: 4, ..first.clone() };
        let (slots, vms) = combine(&[&first, &again]);
        assert_eq!(vms, 1);
        assert_eq!(slots, [slot(0, 0x10_0000), slot(1, 0x20_0000)]);

        let other = KvmVm { pid: 1, fd: 5, slots: vec![slot(0, 0x90_0000)] };
        assert_eq!(combine(&[&first, &other]).1, 2);
    }

    #[test]
    fn a_slot_at_the_end_of_the_address_space_does_not_overflow() {
        let edge = Memslot { len: u64::MAX, ..slot(0, u64::MAX - 4096) };
        assert!(edge.overlaps(u64::MAX - 1, u64::MAX));
        assert!(!edge.overlaps(0, 4096));
    }
}
