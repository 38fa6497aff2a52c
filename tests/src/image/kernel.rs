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

fn find(folder: &Path) -> Result<Kernel, ImageError> {
    let boot = folder.join("boot");
    let names = fs::read_dir(&boot).map_err(ImageError::io("listing", &boot))?;
    let version = names
        .flatten()
        .find_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .ok_or_else(|| ImageError::Failed {
            what: "unpacking the kernel".to_owned(),
            reason: format!("no vmlinuz in {}", boot.display()),
        })?;
    // Before Debian merged the two trees the modules lay in lib, since then in usr/lib.
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|parent| folder.join(parent).join(&version))
        .find(|path| path.is_dir())
        .unwrap_or_else(|| folder.join("lib/modules").join(&version));
    Ok(Kernel { vmlinuz: boot.join(format!("vmlinuz-{version}")), version, modules })
}
