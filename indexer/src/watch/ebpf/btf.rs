//! Where the running kernel keeps the members of its structs: BTF, the kernel's own description of its types.
//!
//! Owns looking members up. KVM's structs are in the module's own (split) BTF where KVM is a module, else in the kernel's.

use std::path::Path;

use btf_rs::{Array, Btf, Struct, Type};
use indexer_common::{
    marks::ADDRESS_SPACES,
    offsets::{Files, Kvm, Mapping},
};

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const KVM_MODULE: &str = "/sys/kernel/btf/kvm";

/// Why an offset is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum BtfError {
    /// The kernel does not describe itself.
    #[error(
        "this kernel does not describe its types ({KERNEL} is missing), so memdexd cannot read its structs: \
         use a kernel built with CONFIG_DEBUG_INFO_BTF"
    )]
    Missing,
    /// The description cannot be read.
    #[error("the kernel's description of its types in {file} cannot be read: {reason}")]
    Unreadable {
        /// Which file.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A struct without the expected member.
    #[error("this kernel's `struct {structure}` has no member `{member}`, so memdexd cannot read it")]
    Member {
        /// Which struct.
        structure: String,
        /// Which member.
        member: String,
    },
    /// Faults don't take the lock that clearing soft-dirty bits takes.
    #[error(
        "this kernel resolves faults without the lock that clearing soft-dirty bits takes (Linux 6.4 to 6.6), which leaves a gap: \
         use 6.1 to 6.3, or better 6.7 or newer"
    )]
    LockedApart,
    /// KVM is not there.
    #[error("this kernel has no `struct kvm`: load the kvm module and start memdexd again")]
    NoKvm,
    /// More address spaces than a VM had when this was written.
    #[error("this kernel's KVM has {0} address spaces for a VM, and memdexd knows of {ADDRESS_SPACES}")]
    AddressSpaces(usize),
}

/// The kernel's types, and KVM's.
pub(super) struct Types {
    btf: Btf,
}

impl Types {
    /// Reads the description of the running kernel.
    pub(super) fn read() -> Result<Self, BtfError> {
        if !Path::new(KERNEL).exists() {
            return Err(BtfError::Missing);
        }
        let unreadable = |file| move |error| BtfError::Unreadable { file, reason: format!("{error:#}") };
        let kernel = Btf::from_file(KERNEL).map_err(unreadable(KERNEL))?;
        let btf = if Path::new(KVM_MODULE).exists() {
            Btf::from_split_file(KVM_MODULE, &kernel).map_err(unreadable(KVM_MODULE))?
        } else {
            kernel
        };
        Ok(Self { btf })
    }

    /// From a task to an open file's inode.
    pub(super) fn files(&self) -> Result<Files, BtfError> {
        Ok(Files {
            known: 1,
            task_files: self.offset("task_struct", "files")?,
            files_fdt: self.offset("files_struct", "fdt")?,
            fdt_max: self.offset("fdtable", "max_fds")?,
            fdt_fd: self.offset("fdtable", "fd")?,
            file_inode: self.offset("file", "f_inode")?,
            inode_number: self.offset("inode", "i_ino")?,
            inode_sb: self.offset("inode", "i_sb")?,
            sb_device: self.offset("super_block", "s_dev")?,
            sb_magic: self.offset("super_block", "s_magic")?,
        })
    }

    /// From a mapping to the process it is of.
    pub(super) fn mapping(&self) -> Result<Mapping, BtfError> {
        if self.offset("vm_area_struct", "vm_lock_seq").is_ok() {
            return Err(BtfError::LockedApart);
        }
        Ok(Mapping {
            vma_mm: self.offset("vm_area_struct", "vm_mm")?,
            mm_owner: self.offset("mm_struct", "owner")?,
            task_tgid: self.offset("task_struct", "tgid")?,
            daemon: std::process::id(),
        })
    }

    /// From an open file to KVM's memslots.
    pub(super) fn kvm(&self) -> Result<Kvm, BtfError> {
        if self.structure("kvm").is_err() {
            return Err(BtfError::NoKvm);
        }
        let address_spaces = self.array("kvm", "memslots")?.len();
        if address_spaces > ADDRESS_SPACES {
            return Err(BtfError::AddressSpaces(address_spaces));
        }
        let buckets = self.array("kvm_memslots", "id_hash")?.len();
        Ok(Kvm {
            task_tgid: self.offset("task_struct", "tgid")?,
            task_mm: self.offset("task_struct", "mm")?,
            file_dentry: self.offset("file", "f_path")? + self.offset("path", "dentry")?,
            dentry_name: self.offset("dentry", "d_name")? + self.offset("qstr", "name")?,
            file_private: self.offset("file", "private_data")?,
            mm: self.offset("kvm", "mm")?,
            memslots: self.offset("kvm", "memslots")?,
            address_spaces: address_spaces as u32,
            generation: self.offset("kvm_memslots", "generation")?,
            id_hash: self.offset("kvm_memslots", "id_hash")?,
            buckets: buckets as u32,
            bucket_size: self.structure("hlist_head")?.size() as u32,
            hlist_first: self.offset("hlist_head", "first")?,
            hlist_next: self.offset("hlist_node", "next")?,
            node_idx: self.offset("kvm_memslots", "node_idx")?,
            slot_id_node: self.offset("kvm_memory_slot", "id_node")?,
            node_size: self.structure("hlist_node")?.size() as u32,
            slot_base_gfn: self.offset("kvm_memory_slot", "base_gfn")?,
            slot_npages: self.offset("kvm_memory_slot", "npages")?,
            slot_hva: self.offset("kvm_memory_slot", "userspace_addr")?,
            slot_flags: self.offset("kvm_memory_slot", "flags")?,
            slot_id: self.offset("kvm_memory_slot", "id")?,
            slot_as_id: self.offset("kvm_memory_slot", "as_id")?,
            two_dimensional: 0, // for others to say
        })
    }

    fn structure(&self, name: &str) -> Result<Struct, BtfError> {
        // Names are shared: by a forward declaration in the kernel's part, or a typedef.
        let types = self.btf.resolve_types_by_name(name).unwrap_or_default();
        types
            .into_iter()
            .find_map(|found| match found {
                Type::Struct(structure) if !structure.members.is_empty() => Some(structure),
                _ => None,
            })
            .ok_or_else(|| BtfError::Member { structure: name.into(), member: "any at all".into() })
    }

    fn offset(&self, structure: &str, member: &str) -> Result<u32, BtfError> {
        Ok(self.member(structure, member)?.0)
    }

    fn array(&self, structure: &str, member: &str) -> Result<Array, BtfError> {
        let (_, type_id) = self.member(structure, member)?;
        match self.btf.resolve_type_by_id(type_id) {
            Ok(Type::Array(array)) => Ok(array),
            _ => Err(BtfError::Member { structure: structure.into(), member: format!("{member}[]") }),
        }
    }

    /// Offset in bytes and type of a member.
    fn member(&self, structure: &str, member: &str) -> Result<(u32, u32), BtfError> {
        self.find(&self.structure(structure)?, member)
            .ok_or_else(|| BtfError::Member { structure: structure.into(), member: member.into() })
    }

    /// Looks in the struct, and in the structs and unions without a name inside it: members move into such between kernel versions.
    fn find(&self, structure: &Struct, name: &str) -> Option<(u32, u32)> {
        use btf_rs::BtfType as _;
        structure.members.iter().find_map(|member| {
            let type_id = member.get_type_id().ok()?;
            let here = member.bit_offset() / 8;
            let member_name = self.btf.resolve_name(member).unwrap_or_default();
            if member_name == name {
                return Some((here, type_id));
            }
            if !member_name.is_empty() {
                return None;
            }
            match self.btf.resolve_type_by_id(type_id).ok()? {
                Type::Struct(inner) | Type::Union(inner) => {
                    self.find(&inner, name).map(|(inside, type_id)| (here + inside, type_id))
                }
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_describes_what_the_programs_read() {
        let types = Types::read().unwrap();
        let files = types.files().unwrap();
        assert_eq!(files.known, 1);
        assert_ne!(files.inode_number, 0);
        let kvm = types.kvm().unwrap();
        assert!(kvm.buckets.is_power_of_two());
        assert_eq!((kvm.bucket_size, kvm.node_size), (8, 16));
        assert!((1..=ADDRESS_SPACES as u32).contains(&kvm.address_spaces));
    }

    #[test]
    fn a_missing_member_is_named() {
        let error = Types::read().unwrap().offset("task_struct", "no_such_member").unwrap_err().to_string();
        assert!(error.contains("task_struct") && error.contains("no_such_member"), "{error}");
    }
}
