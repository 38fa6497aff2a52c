//! What a guest's workload does, told on the kernel command line. The scripts in `files/` read it.

use std::fmt;

/// How much a guest writes. Displays as the arguments for the kernel command line.
///
/// The tiny guest keeps its files in a tmpfs, so each operation (a file written anew, some pages rewritten, a file
/// deleted) touches guest memory at once. The Debian guest rewrites redis keys and files on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Operations a second; 0 leaves the guest idle after it was filled.
    pub rate: u32,
    /// How many files (the Debian guest: redis keys) there are.
    pub files: u32,
    /// Size of a file in KiB (tiny guest only).
    pub file_kib: u32,
    /// Distinguishes guests: half of the files differ between guests with different seeds, half never do.
    pub seed: u32,
}

impl Default for Workload {
    fn default() -> Self {
        Self { rate: 10, files: 64, file_kib: 64, seed: 1 }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, files, file_kib, seed } = self;
        write!(f, "memdex.rate={rate} memdex.files={files} memdex.kib={file_kib} memdex.seed={seed}")
    }
}
