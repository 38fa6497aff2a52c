//! The KVM VMs of the host and their memory slots, read through the iterator program.
//!
//! Owns running the iterator and reading what it writes. Never decides which process is a VM worth tracking.

use std::io::Read as _;

use aya::{
    Ebpf,
    programs::{Iter, ProgramError, links::LinkError},
};
use indexer_common::{
    marks::{ADDRESS_SPACES, PAGE_SHIFT},
    records::{CHANGING, Record, SLOT, TRUNCATED, VM},
};

use super::shared::records;
use crate::{
    units::{Gpa, Hva},
    vm::descriptor::Memslot,
};

/// Times an iteration that met a VM in the middle of a change is begun anew. A change takes microseconds.
const ATTEMPTS: usize = 4;

/// A KVM VM: a `kvm-vm` file held open by the process it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmVm {
    /// Process (thread group) id.
    pub pid: u32,
    /// Number of its file descriptor; the first, if there are several.
    pub fd: i32,
    /// Its memory slots, by id. Includes the few KVM makes for itself (ids from 32764 on).
    pub slots: Vec<Memslot>,
    /// Address of its `struct kvm`: tells two VMs of a process apart.
    pub address: u64,
    /// KVM's generation of the slots, for each address space.
    pub generations: [u64; ADDRESS_SPACES],
    /// False if slots are missing, or changed while they were read, several times over.
    pub complete: bool,
}

/// Why the memory slots are not known.
#[derive(Debug, thiserror::Error)]
pub enum MemslotsError {
    /// The iterator is not loaded.
    #[error("KVM's memory slots cannot be read: {0}")]
    NotLoaded(String),
    /// It could not be attached or opened.
    #[error("KVM's memory slots cannot be read because the kernel refuses the iterator: {0}")]
    Program(#[from] ProgramError),
    /// It could not be opened.
    #[error("KVM's memory slots cannot be read because the kernel refuses to open the iterator: {0}")]
    Link(#[from] LinkError),
    /// Reading failed.
    #[error("KVM's memory slots cannot be read because reading the iterator fails: {0}")]
    Read(#[from] std::io::Error),
}

/// Runs the iterator, a few times if it meets a VM whose slots are being changed.
pub(super) fn read(object: &mut Ebpf) -> Result<Vec<KvmVm>, MemslotsError> {
    let mut bytes = Vec::new();
    let mut attempt = 0;
    loop {
        attempt += 1;
        bytes.clear();
        let missing = || MemslotsError::NotLoaded("the object has no program `memslots`".to_owned());
        let program: &mut Iter = object.program_mut("memslots").ok_or_else(missing)?.try_into()?;
        let link = program.attach()?;
        program.take_link(link)?.into_file()?.read_to_end(&mut bytes)?;
        let (vms, changing) = parse(records(&bytes));
        if !changing || attempt == ATTEMPTS {
            return Ok(vms);
        }
    }
}

/// Puts the records together. Also says whether a VM was in the middle of a change.
fn parse(records: impl Iterator<Item = Record>) -> (Vec<KvmVm>, bool) {
    let (mut vms, mut slots, mut any_changing) = (Vec::<KvmVm>::new(), Vec::new(), false);
    for record in records {
        match record.kind {
            SLOT => slots.push(Memslot {
                id: record.id,
                gpa: Gpa(record.address << PAGE_SHIFT),
                len: record.values[0] << PAGE_SHIFT,
                hva: Hva(record.values[1]),
                flags: record.flags,
            }),
            VM => {
                let mut slots = std::mem::take(&mut slots);
                slots.sort_unstable_by_key(|slot| slot.id);
                let changing = record.flags & CHANGING != 0;
                any_changing |= changing;
                // A VM whose file descriptor was duplicated comes more than once.
                if !vms.iter().any(|vm| vm.pid == record.id && vm.address == record.address) {
                    vms.push(KvmVm {
                        pid: record.id,
                        fd: record.fd as i32,
                        slots,
                        address: record.address,
                        generations: record.values,
                        complete: !changing && record.flags & TRUNCATED == 0,
                    });
                }
            }
            _ => slots.clear(),
        }
    }
    (vms, any_changing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(id: u32) -> Record {
        Record { kind: SLOT, id, flags: 1, fd: 0, address: 0x10 + u64::from(id), values: [4, 0x7000_0000] }
    }

    fn vm(pid: u32, address: u64, flags: u32) -> Record {
        Record { kind: VM, id: pid, flags, fd: 5, address, values: [8, 0] }
    }

    #[test]
    fn slots_belong_to_the_vm_that_follows_them() {
        let (vms, changing) =
            parse([slot(1), slot(0), vm(10, 1, 0), vm(11, 2, 0), slot(7), vm(12, 3, TRUNCATED)].into_iter());
        assert!(!changing);
        let ids = |vm: &KvmVm| vm.slots.iter().map(|slot| slot.id).collect::<Vec<_>>();
        assert_eq!(vms.iter().map(ids).collect::<Vec<_>>(), [vec![0, 1], vec![], vec![7]]);
        assert_eq!(vms[0].slots[0].gpa, Gpa(0x10000));
        assert_eq!(vms[0].slots[0].len, 0x4000);
        assert_eq!(vms.iter().map(|vm| vm.complete).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn a_duplicated_descriptor_is_one_vm_and_a_second_vm_is_another() {
        let (vms, _) = parse([slot(0), vm(10, 1, 0), slot(0), vm(10, 1, 0), vm(10, 2, 0)].into_iter());
        assert_eq!(vms.iter().map(|vm| vm.address).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_vm_in_the_middle_of_a_change_is_incomplete() {
        let (vms, changing) = parse([slot(0), vm(10, 1, CHANGING)].into_iter());
        assert!(changing && !vms[0].complete);
    }
}
