//! What some rows want of the host: huge pages in the kernel's pool, a tmpfs that gives huge pages. Undone at the end.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use memdex_tests::Scratch;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Whether a file can be opened for direct I/O. Only on a tmpfs of a kernel before 6.6, as in the kernel matrix, it can't.
///
/// # Panics
/// If it can't where it should.
pub(crate) fn direct_io_is_possible(file: &Path) -> bool {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file);
    let Err(error) = opened else { return true };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let number = |at| release.split(['.', '-']).nth(at).and_then(|text| text.trim().parse::<u32>().ok());
    let (major, minor) = (number(0).expect("a number"), number(1).expect("a number"));
    assert!((major, minor) < (6, 6), "{} can't be opened for direct I/O: {error}", file.display());
    false
}

/// Huge pages of 2 MiB added to the kernel's pool.
pub(crate) struct HugePages {
    before: u64,
}

impl HugePages {
    pub(crate) fn add(pages: u64) -> Self {
        let count = || -> u64 {
            let text = fs::read_to_string(POOL).expect("the kernel has hugetlbfs");
            text.trim().parse().expect("a number")
        };
        let before = count();
        fs::write(POOL, (before + pages).to_string()).expect("the pool can be changed");
        let this = Self { before };
        assert_eq!(
            count(),
            before + pages,
            "the host has not enough memory in one piece for {pages} huge pages"
        );
        this
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.before.to_string());
    }
}

/// A tmpfs whose files are made of huge pages wherever possible.
pub(crate) struct HugeTmpfs(PathBuf);

impl HugeTmpfs {
    pub(crate) fn mount(scratch: &Scratch) -> Self {
        let folder = scratch.path("huge");
        fs::create_dir(&folder).expect("a folder can be made");
        mount("none", &folder, "tmpfs", MountFlags::empty(), c"huge=always,size=64m")
            .expect("the kernel has huge pages for tmpfs");
        Self(folder)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for HugeTmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
