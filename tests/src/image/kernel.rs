//! The guests' kernel: Debian's cloud kernel of this machine's release, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use super::apt;
use super::error::ImageError;
use super::modules::{self, Module};
use super::store::{self, Recipe};

const METAPACKAGE: &str = "linux-image-cloud-amd64";

pub(super) fn recipe() -> Recipe {
    Recipe {
        name: "kernel",
        takes: "a download of 30 MB",
        parts: vec![METAPACKAGE.to_owned(), "1".to_owned()],
    }
}

/// A kernel to boot guests with.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The image for QEMU's `-kernel`.
    pub vmlinuz: PathBuf,
    /// As `uname -r` prints it in the guest.
    pub version: String,
    /// The kernel's modules: the folder `lib/modules/VERSION`.
    pub modules: PathBuf,
}

impl Kernel {
    pub(super) fn modules_in_order(&self, wanted: &[&str]) -> Result<Vec<Module>, ImageError> {
        modules::in_order(&self.modules, wanted)
    }
}

/// The guests' kernel; fetched first if it is not there.
///
/// # Errors
/// apt can't deliver it; the error has apt's reason.
pub fn kernel() -> Result<Kernel, ImageError> {
    let folder = store::ensure(&recipe(), |folder| {
        let package = apt::behind(METAPACKAGE, "linux-image-")?;
        apt::unpack(&package, folder)?;
        find(folder).map(drop)
    })?;
    find(&folder)
}

/// The kernel in a folder that packages were unpacked into.
pub(super) fn find(folder: &Path) -> Result<Kernel, ImageError> {
    // Before Debian merged the two trees the modules lay in lib, since then in usr/lib.
    let trees = ["lib/modules", "usr/lib/modules"].map(|parent| folder.join(parent));
    let modules = |version: &str| {
        let places = trees.iter().map(|tree| tree.join(version));
        places.clone().find(|path| path.is_dir()).unwrap_or_else(|| trees[0].join(version))
    };
    let boot = folder.join("boot");
    let installed = fs::read_dir(&boot).into_iter().flatten().flatten().find_map(|entry| {
        let version = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        Some((entry.path(), version))
    });
    // The newest packages have the image among the modules; installing them copies it to /boot.
    let among_modules = || {
        trees.iter().flat_map(fs::read_dir).flatten().flatten().find_map(|entry| {
            let vmlinuz = entry.path().join("vmlinuz");
            vmlinuz.is_file().then(|| (vmlinuz, entry.file_name().to_string_lossy().into_owned()))
        })
    };
    let (vmlinuz, version) = installed.or_else(among_modules).ok_or_else(|| ImageError::Failed {
        what: "unpacking the kernel".to_owned(),
        reason: format!("no vmlinuz in {}", boot.display()),
    })?;
    Ok(Kernel { vmlinuz, modules: modules(&version), version })
}
