//! What kind of file stands behind a mapping. Owns the questions to the file system (`fstat`, `fstatfs`) and their
//! answers' cache; never opens a file for reading.

use std::collections::HashMap;

use rustix::fs::{FileType, fstat, fstatfs};

use crate::vm::{
    maps::{FileKey, Vma},
    processes::ProcessDir,
};

/// `TMPFS_MAGIC` of `linux/magic.h`; memfd and shared anonymous memory have it too.
const TMPFS: i64 = 0x0102_1994;
/// `HUGETLBFS_MAGIC`.
const HUGETLBFS: i64 = 0x9584_58f6;

/// Bytes in a page of an ordinary mapping.
pub(crate) const PAGE: u64 = memdex_wire::PAGE_SIZE as u64;

/// What the file system says about a mapped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileFacts {
    /// `st_dev`
    pub(crate) device: u64,
    /// `st_ino`
    pub(crate) inode: u64,
    /// Where its pages live.
    pub(crate) storage: Storage,
    /// Bytes in a page of its mappings.
    pub(crate) page_size: u64,
}

/// Where a file's pages live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// tmpfs, memfd, shared anonymous memory: nowhere but in memory.
    Memory,
    /// hugetlbfs.
    HugePages,
    /// A disk, a device, or unknown.
    Other,
}

impl Storage {
    /// Whether the file is memory and nothing else, so that userfaultfd can watch it.
    pub(crate) const fn is_memory(self) -> bool {
        matches!(self, Self::Memory | Self::HugePages)
    }
}

/// Answers for the files of one VMM.
#[derive(Debug, Default)]
pub(crate) struct FileCache {
    facts: HashMap<FileKey, FileFacts>,
}

impl FileCache {
    /// Forgets files that are not mapped any more: their inode numbers may be given to others.
    pub(crate) fn retain(&mut self, vmas: &[Vma]) {
        self.facts.retain(|key, _| vmas.iter().any(|vma| vma.file == *key));
    }

    /// What stands behind `vma`.
    pub(crate) fn facts(&mut self, dir: &ProcessDir, vma: &Vma) -> FileFacts {
        if let Some(facts) = self.facts.get(&vma.file) {
            return *facts;
        }
        match ask(dir, vma) {
            Some(facts) => {
                self.facts.insert(vma.file, facts);
                facts
            }
            None => guess(vma),
        }
    }
}

/// Asks through `map_files`, which needs CAP_CHECKPOINT_RESTORE or root, else through a descriptor of the VMM's.
fn ask(dir: &ProcessDir, vma: &Vma) -> Option<FileFacts> {
    let of = |name: &str| {
        let file = dir.open_target(name).ok()?;
        let stat = fstat(&file).ok()?;
        let system = fstatfs(&file).ok()?;
        let magic = system.f_type;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let (storage, page_size) = match magic {
            TMPFS if regular => (Storage::Memory, PAGE),
            HUGETLBFS if regular => {
                (Storage::HugePages, u64::try_from(system.f_bsize).unwrap_or(PAGE).max(PAGE))
            }
            _ => (Storage::Other, PAGE),
        };
        Some(FileFacts { device: stat.st_dev, inode: stat.st_ino, storage, page_size })
    };
    if let Some(facts) = of(&format!("map_files/{:x}-{:x}", vma.range.start, vma.range.end)) {
        // The mapping may have been replaced since `maps` was read.
        return (facts.inode == vma.file.inode).then_some(facts);
    }
    let descriptors = dir.numbers("fd", 4096).ok()?;
    let same = |facts: &FileFacts| facts.inode == vma.file.inode && facts.device == vma.file.device;
    descriptors.into_iter().filter_map(|fd| of(&format!("fd/{fd}"))).find(same)
}

/// Goes by the name alone.
fn guess(vma: &Vma) -> FileFacts {
    let memory = [&b"/memfd:"[..], b"/dev/zero (deleted)", b"/dev/shm/", b"/SYSV"];
    let storage =
        if memory.iter().any(|start| vma.path.starts_with(start)) { Storage::Memory } else { Storage::Other };
    FileFacts { device: vma.file.device, inode: vma.file.inode, storage, page_size: PAGE }
}
