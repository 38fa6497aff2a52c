//! A guest of the demo: what it is made of, and the QEMU that runs it. Never knows a daemon.

use std::{path::PathBuf, time::Duration};

use memdex_tests::{
    Qemu, Scratch,
    image::{self, Check, Workload},
    qemu::{Backend, Boot, Options},
};

use crate::stage::Failure;

/// What every guest checks of its own memory, all the time: enough to be believed, too little to change the picture.
const CHECK: Check = Check { mib: 4, rate: 40, hot: 0 };

/// A guest and what is known of it without memdex.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    /// Name of its VM on the host where it is: its own, until it moves.
    pub(crate) vm: String,
    pub(crate) ram: PathBuf,
    pub(crate) qemu: Qemu,
    /// How long it took until its services ran.
    pub(crate) booted: Option<Duration>,
    pub(super) options: Options,
}

impl Guest {
    /// Starts its QEMU, which has a RAM file.
    pub(super) fn start(scratch: &Scratch, name: &'static str, vm: String, mut options: Options) -> Self {
        options.name = Some(vm.clone());
        let qemu = Qemu::start(scratch, &vm, &options);
        let ram = qemu.ram_file().expect("guests of the demo have a RAM file").to_owned();
        Self { name, vm, ram, qemu, booted: None, options }
    }
}

/// What a guest is made of: `fast` is the tiny one. Debian guests share one disk, but for one that has its own, and can
/// therefore move.
pub(super) fn options(
    fast: bool,
    mib: u64,
    ram: PathBuf,
    disk: Option<PathBuf>,
    workload: Workload,
) -> Result<Options, Failure> {
    let failed = |error: image::ImageError| Failure::Failed(error.to_string());
    let ram = Backend::File(ram);
    if fast {
        image::tiny_guest().map_err(failed)?;
        return Ok(Options::linux(mib, ram, Boot::tiny(&workload, Some(&CHECK))));
    }
    let image = image::debian_guest().map_err(failed)?;
    if let Some(disk) = disk {
        return Ok(Options::debian(mib, ram, disk, &workload, Some(&CHECK)));
    }
    let drive = ["-drive".to_owned(), image.drive()];
    let command_line = format!("{} {CHECK}", image.command_line(&workload));
    let boot = Boot { kernel: image.kernel.vmlinuz, initrd: image.initrd, command_line };
    let mut options = Options::linux(mib, ram, boot);
    options.arguments.extend(drive);
    options.arguments.extend(["-device".to_owned(), "virtio-blk-pci,drive=root".to_owned()]);
    Ok(options)
}
