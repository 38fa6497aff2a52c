//! The tiny guest: kernel, busybox and one script. No network, a memory workload; reads its disk all the time, if it has one.

use std::fs;
use std::path::{Path, PathBuf};

use super::check;
use super::cpio::Archive;
use super::error::ImageError;
use super::kernel::{Kernel, kernel};
use super::modules::Module;
use super::store::{self, Recipe};

const INIT: &str = include_str!("files/tiny_init.sh");
const MODULES: &[&str] = &["virtio_pci", "virtio_balloon", "virtio_rng", "virtio_blk"];

pub(super) fn recipe(kernel: &Kernel) -> Recipe {
    let own = [INIT.to_owned(), kernel.version.clone(), "2".to_owned()];
    Recipe { name: "tiny", takes: "a second", parts: own.into_iter().chain(check::parts()).collect() }
}

/// What the tiny guest boots from.
#[derive(Clone, Debug)]
pub struct TinyGuest {
    /// Its kernel.
    pub kernel: Kernel,
    /// The initramfs for QEMU's `-initrd`.
    pub initrd: PathBuf,
}

impl TinyGuest {
    /// The kernel command line: console on the first serial port, and the workload.
    #[must_use]
    pub fn command_line(&self, workload: &super::Workload) -> String {
        format!("console=ttyS0 quiet panic=-1 no_timer_check {workload}")
    }
}

/// The tiny guest; built first if it is not there.
///
/// # Errors
/// The kernel can't be fetched, or busybox is not installed.
pub fn tiny_guest() -> Result<TinyGuest, ImageError> {
    let kernel = kernel()?;
    let folder = store::ensure(&recipe(&kernel), |folder| {
        let mut archive = base(&kernel.modules_in_order(MODULES)?)?;
        archive.program("init", INIT.as_bytes());
        archive.program(&format!("bin/{}", check::NAME), &check::program()?);
        write(&folder.join("initrd.cpio"), archive)
    })?;
    Ok(TinyGuest { kernel, initrd: folder.join("initrd.cpio") })
}

/// What every initramfs here begins with: busybox, mount points, and modules numbered in the order of loading.
pub(super) fn base(modules: &[Module]) -> Result<Archive, ImageError> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox"]
        .iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .ok_or_else(|| ImageError::NoProgram { program: "busybox".to_owned() })?;
    let busybox = fs::read(busybox).map_err(ImageError::io("reading", busybox))?;
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "work", "root", "modules"] {
        archive.folder(folder);
    }
    archive.program("bin/busybox", &busybox);
    archive.link("bin/sh", "busybox");
    for (index, module) in modules.iter().enumerate() {
        archive.file(&format!("modules/{index:02}-{}.ko", module.name), &module.bytes);
    }
    Ok(archive)
}

pub(super) fn write(path: &Path, archive: Archive) -> Result<(), ImageError> {
    fs::write(path, archive.finish()).map_err(ImageError::io("writing", path))
}
