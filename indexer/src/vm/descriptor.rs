//! What discovery found out about one VM: plain data, made anew by every sweep and compared with the last.

use std::path::PathBuf;

use crate::units::{Gpa, Hva};

/// One VMM process that runs a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDescriptor {
    /// Which process, safe against pid reuse.
    pub process: ProcessId,
    /// Name from the command line, or made from program and pid.
    pub name: String,
    /// UUID from the command line.
    pub uuid: Option<String>,
    /// Program name, for example `qemu-system-x86_64`.
    pub vmm: String,
    /// What executes guest code.
    pub accelerator: Accelerator,
    /// Guest RAM in a stable order: a region keeps its place for as long as it exists, new ones are appended.
    pub regions: Vec<Region>,
    /// KVM's memory slots; empty without KVM or if they could not be read.
    pub memslots: Vec<Memslot>,
    /// The first file that the VMM has open for direct I/O: its disks write guest memory some time after the page tables have shown it.
    pub direct_io: Option<PathBuf>,
    /// Whether the VMM has KVM's dirty ring on. It need not log anything.
    pub dirty_ring: bool,
    /// Ways to write this VM's memory that tracking cannot see (VFIO, registered buffers, foreign mappings …), in words.
    pub doubts: Vec<String>,
}

/// A process that cannot be mistaken for another one that got the same pid later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Process id (thread group id).
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// Hardware virtualization through /dev/kvm.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// Could not be told.
    Unknown,
}

/// A contiguous piece of guest RAM in the VMM's address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Name for people: the RAM file's path or name, else the kind of mapping.
    pub name: String,
    /// First address; page-aligned.
    pub start: Hva,
    /// Length in bytes; a multiple of the page size.
    pub len: u64,
    /// What is mapped there.
    pub backing: Backing,
    /// Bytes in a page of the mapping: 4096, or more on hugetlbfs.
    pub mapping_page_size: u64,
}

/// What stands behind a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A file mapped shared: the RAM *is* the file.
    SharedFile {
        /// Device number of the file's file system, as in `st_dev`.
        device: u64,
        /// Inode number.
        inode: u64,
        /// Offset in the file of the region's first byte.
        offset: u64,
        /// Path as the kernel shows it; may have been unlinked (memfd).
        path: PathBuf,
        /// Whether userfaultfd can watch it: true on shmem (tmpfs, memfd) and hugetlbfs.
        trackable: bool,
    },
    /// A file mapped private: writes go to anonymous copies.
    PrivateFile {
        /// Path as the kernel shows it.
        path: PathBuf,
    },
    /// Anonymous memory.
    Anonymous,
}

/// A KVM memory slot: guest physical memory backed by the VMM's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memslot {
    /// Address space (bits 16 and up) and slot number (low 16 bits), as KVM's dirty ring reports it.
    pub id: u32,
    /// First guest physical address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// Where it stands in the VMM.
    pub hva: Hva,
    /// KVM_MEM_* flags.
    pub flags: u32,
}

impl VmDescriptor {
    /// Names the VM on this host for as long as its process lives.
    #[must_use]
    pub fn id(&self) -> String {
        self.process.to_string()
    }

    /// Pages of all regions together.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.regions.iter().map(Region::pages).sum()
    }
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vm-{}-{}", self.pid, self.start_time)
    }
}

impl Accelerator {
    /// The name used in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Unknown => "unknown",
        }
    }
}

impl Region {
    /// Pages in the region.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.len / memdex_wire::PAGE_SIZE as u64
    }

    /// One past the last address.
    #[must_use]
    pub const fn end(&self) -> Hva {
        Hva(self.start.0 + self.len)
    }
}
