//! Kernels of hosts: the stock kernels of Debian's releases, on which memdex itself is tried (see
//! [`crate::kernel_matrix`]). Owns which there are and what is kept of each: the image, and KVM's modules and a disk's.
//!
//! Unlike the guests' cloud kernel these have KVM. To add one, name it in [`HOST_KERNELS`].

use std::fs;
use std::path::{Path, PathBuf};

use super::apt::Suite;
use super::error::ImageError;
use super::kernel;
use super::store::{self, Recipe};

/// What a kernel is made of: the image, and (since Linux 6.16 of Debian) packages beside it.
const PREFIXES: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
const METAPACKAGE: &str = "linux-image-amd64";
/// KVM on the processor that QEMU emulates, and a disk in memory that can be read by direct I/O; what they need comes by itself.
const MODULES: [&str; 2] = ["kvm-amd", "brd"];

/// A kernel there is to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostKernelSource {
    /// What people call it.
    pub name: &'static str,
    /// The suite of Debian's archive it is the kernel of.
    pub suite: &'static str,
    /// Name of its image in the store.
    image: &'static str,
}

/// Every kernel there is to try, the oldest first.
pub const HOST_KERNELS: [HostKernelSource; 3] = [
    HostKernelSource { name: "6.1", suite: "bookworm", image: "host-kernel-6.1" },
    HostKernelSource { name: "6.12", suite: "trixie", image: "host-kernel-6.12" },
    HostKernelSource { name: "newest", suite: "sid", image: "host-kernel-newest" },
];

/// A kernel to boot a host with.
#[derive(Clone, Debug)]
pub struct HostKernel {
    /// The image for QEMU's `-kernel`.
    pub vmlinuz: PathBuf,
    /// As `uname -r` prints it.
    pub version: String,
    /// KVM's modules, uncompressed, in the order of loading.
    pub modules: Vec<PathBuf>,
}

impl HostKernelSource {
    /// The kernel of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        HOST_KERNELS.into_iter().find(|kernel| kernel.name == name)
    }

    /// The kernel; fetched first if it is not there.
    ///
    /// # Errors
    /// apt can't deliver it; the error has apt's reason.
    pub fn fetch(&self) -> Result<HostKernel, ImageError> {
        let folder = store::ensure(&self.recipe(), |folder| self.build(folder))?;
        let version = folder.join("version");
        let version = fs::read_to_string(&version).map_err(ImageError::io("reading", &version))?;
        let modules = folder.join("modules");
        let entries = fs::read_dir(&modules).map_err(ImageError::io("listing", &modules))?;
        let mut modules: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        modules.sort_unstable();
        Ok(HostKernel { vmlinuz: folder.join("vmlinuz"), version, modules })
    }

    fn recipe(&self) -> Recipe {
        let parts = [self.suite, METAPACKAGE, "1"].into_iter().chain(MODULES).map(str::to_owned);
        Recipe { name: self.image, takes: "a download of 100 MB", parts: parts.collect() }
    }

    /// Of the half gigabyte that the packages hold some megabytes are kept.
    fn build(&self, folder: &Path) -> Result<(), ImageError> {
        let unpacked = folder.join("unpacked");
        let suite = Suite::open(self.suite, folder)?;
        for package in suite.behind(METAPACKAGE, &PREFIXES)? {
            suite.unpack(&package, &unpacked)?;
        }
        suite.close()?;

        let kernel = kernel::find(&unpacked)?;
        let modules = folder.join("modules");
        fs::create_dir(&modules).map_err(ImageError::io("creating", &modules))?;
        for (index, module) in kernel.modules_in_order(&MODULES)?.iter().enumerate() {
            write(&modules.join(format!("{index:02}-{}.ko", module.name)), &module.bytes)?;
        }
        let vmlinuz = fs::read(&kernel.vmlinuz).map_err(ImageError::io("reading", &kernel.vmlinuz))?;
        write(&folder.join("vmlinuz"), &vmlinuz)?;
        write(&folder.join("version"), kernel.version.as_bytes())?;
        fs::remove_dir_all(&unpacked).map_err(ImageError::io("removing", &unpacked))
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    fs::write(path, bytes).map_err(ImageError::io("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_names_of_its_own() {
        for (index, kernel) in HOST_KERNELS.iter().enumerate() {
            assert_eq!(HostKernelSource::named(kernel.name), Some(*kernel));
            let others = HOST_KERNELS.iter().skip(index + 1);
            assert!(others.clone().all(|other| other.image != kernel.image && other.name != kernel.name));
        }
        assert_eq!(HostKernelSource::named("2.6"), None);
    }
}
