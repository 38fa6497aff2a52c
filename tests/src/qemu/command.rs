//! The command line of a QEMU. Owns how options become arguments, and makes the files that must be there before.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use super::options::{Accelerator, Backend, Options};
use crate::Scratch;

/// Files of one QEMU.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    /// The monitor of the harness.
    pub(super) monitor: PathBuf,
    /// The monitor for memdex.
    pub(super) memdex_monitor: PathBuf,
    /// What the guest prints.
    pub(super) serial: PathBuf,
    /// What QEMU prints.
    pub(super) errors: PathBuf,
}

impl Paths {
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self {
            monitor: folder.join("monitor"),
            memdex_monitor: folder.join("memdex-qmp"),
            serial: folder.join("serial"),
            errors: folder.join("errors"),
        }
    }
}

pub(super) fn command(scratch: &Scratch, name: &str, options: &Options, paths: &Paths) -> Command {
    let program = options.qemu.as_ref().map_or(Path::new("qemu-system-x86_64"), |qemu| &qemu.program);
    let mut command = match options.uid {
        None => scratch.command(program),
        Some(uid) => {
            let mut command = scratch.command("setpriv");
            let uid = uid.to_string();
            command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]).arg(program);
            command
        }
    };
    command.args(options.qemu.iter().flat_map(|qemu| &qemu.arguments));
    command.args(["-name", options.name.as_deref().unwrap_or(name)]);
    command.args(["-nodefaults", "-display", "none", "-no-user-config"]);
    command.args(["-accel", if options.accelerator == Accelerator::Kvm { "kvm" } else { "tcg" }]);
    memory(&mut command, options);
    command.arg("-serial").arg(format!("file:{}", paths.serial.display()));
    // QMP serves one client at a time. memdex has its own, and it is the first one, so that who looks for a monitor on
    // the command line finds it.
    for monitor in [&paths.memdex_monitor, &paths.monitor] {
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
    }
    if let Some(boot) = &options.boot {
        command.args(["-no-reboot", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initrd);
        command.args(["-append", &boot.command_line]);
    }
    if let Some(disk) = &options.disk {
        // The two ends of a migration have the same file open, which is safe: a QEMU that waits leaves it alone, and the
        // source gives it up before the destination takes it. QEMU's own locks stay on, and refuse the disk to the
        // second one should both ever want to run. Raw, because there is nothing in it that a QEMU would remember.
        command.arg("-drive").arg(format!(
            "if=none,id=root,format=raw,{},file={}",
            options.disk_access,
            escaped(disk)
        ));
        command.args(["-device", "virtio-blk-pci,drive=root"]);
    }
    if options.balloon {
        command.args(["-device", "virtio-balloon-pci,id=balloon"]);
    }
    if options.incoming {
        command.args(["-incoming", "defer"]);
    }
    command.args(&options.arguments);
    command
}

fn memory(command: &mut Command, options: &Options) {
    let Options { mib, machine, hotplug_mib, .. } = options;
    let size = if *hotplug_mib > 0 {
        format!("{mib}M,slots=4,maxmem={}M", mib + hotplug_mib)
    } else {
        format!("{mib}M")
    };
    command.args(["-m", &size]);
    let backend = match &options.backend {
        Backend::File(path) => {
            format!("memory-backend-file,id=ram,size={mib}M,mem-path={},share=on", escaped(path))
        }
        Backend::Memfd => format!("memory-backend-memfd,id=ram,size={mib}M,share=on"),
        Backend::Plain => {
            command.args(["-machine", machine]);
            return;
        }
    };
    command.args(["-object", &backend, "-machine", &format!("{machine},memory-backend=ram")]);
}

/// A comma in a path would begin the next option; QEMU reads two as one.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Makes a file that QEMU opens, if it is not there, and gives it to the user QEMU runs as.
pub(super) fn prepare_file(path: &Path, options: &Options) {
    File::options().write(true).create(true).truncate(false).open(path).expect("a file for QEMU can be made");
    give(path, options);
}

/// Gives a file or folder to the user QEMU runs as.
pub(super) fn give(path: &Path, options: &Options) {
    if let Some(uid) = options.uid {
        std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("root can give files away");
    }
}
