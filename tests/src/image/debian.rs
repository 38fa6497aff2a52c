//! The Debian guest: systemd, udev, redis, nginx and a gentle workload on an ext4 disk.
//!
//! Built in two steps that are kept apart, because the first is slow and seldom changes: the system as the archive
//! delivers it, then the disk with the project's own files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt;
use super::check;
use super::error::ImageError;
use super::kernel::{Kernel, kernel};
use super::run::run;
use super::store::{self, Recipe};
use super::tiny::{base, write};

const PACKAGES: &str = "systemd-sysv,udev,kmod,redis-server,nginx-light";
const INIT: &str = include_str!("files/debian_init.sh");
const WORKLOAD: &str = include_str!("files/debian_workload.sh");
const WORKLOAD_UNIT: &str = include_str!("files/memdex-workload.service");
const READY_UNIT: &str = include_str!("files/memdex-ready.service");
const CHECK_UNIT: &str = include_str!("files/memdex-check.service");
const MODULES: &[&str] = &["virtio_pci", "virtio_blk"];
/// Units that only cost time at boot or write at moments no test expects.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "logrotate.timer",
    "serial-getty@ttyS0.service",
    "systemd-timesyncd.service",
];

fn system_recipe() -> Recipe {
    Recipe {
        name: "debian-system",
        takes: "one or two minutes, a download of 100 MB",
        parts: vec![PACKAGES.to_owned(), "1".to_owned()],
    }
}

pub(super) fn recipe(kernel: &Kernel) -> Recipe {
    let own = [PACKAGES, INIT, WORKLOAD, WORKLOAD_UNIT, READY_UNIT, CHECK_UNIT, &kernel.version, "1"];
    let parts = own.map(str::to_owned).into_iter().chain(check::parts()).collect();
    Recipe { name: "debian-disk", takes: "ten seconds", parts }
}

/// What the Debian guest boots from.
#[derive(Clone, Debug)]
pub struct DebianGuest {
    /// Its kernel.
    pub kernel: Kernel,
    /// The initramfs for QEMU's `-initrd`; it mounts the disk and starts systemd.
    pub initrd: PathBuf,
    /// A raw ext4 image of the root file system, shared by all guests: attach it with [`Self::drive`].
    pub disk: PathBuf,
}

impl DebianGuest {
    /// Value of QEMU's `-drive`: the guest may write, its writes go to a temporary file, the image stays as it is.
    /// Belongs to `-device virtio-blk-pci,drive=root`.
    #[must_use]
    pub fn drive(&self) -> String {
        // A comma in the path would begin the next option; QEMU reads two as one.
        let path = self.disk.display().to_string().replace(',', ",,");
        format!("if=none,id=root,format=raw,snapshot=on,file={path}")
    }

    /// A copy of the disk for a guest whose writes are to stay, because it will be opened by another QEMU.
    ///
    /// # Errors
    /// It can't be copied.
    pub fn copy_disk(&self, to: &Path) -> Result<(), ImageError> {
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]).arg(&self.disk).arg(to);
        run(&mut copy, "copying the guest's disk").map(drop)
    }

    /// The kernel command line: console on the first serial port, and the workload.
    #[must_use]
    pub fn command_line(&self, workload: &super::Workload) -> String {
        format!("console=ttyS0 quiet panic=-1 no_timer_check systemd.show_status=no {workload}")
    }
}

/// The Debian guest; built first if it is not there.
///
/// # Errors
/// Not root, a tool is missing, or the archive can't deliver a package; the error says which.
pub fn debian_guest() -> Result<DebianGuest, ImageError> {
    let kernel = kernel()?;
    let recipe = recipe(&kernel);
    if !store::is_built(&recipe) {
        // ahead of the disk, so that a person is told of the two steps one after the other
        store::ensure(&system_recipe(), bootstrap)?;
    }
    let folder = store::ensure(&recipe, |folder| {
        let system = store::ensure(&system_recipe(), bootstrap)?.join("root");
        let root = folder.join("root");
        run(
            Command::new("cp").args(["-a", "--reflink=auto"]).arg(&system).arg(&root),
            "copying the Debian system",
        )?;
        customise(&root, &kernel)?;
        run(
            Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4", "-L", "root", "-d"])
                .arg(&root)
                .args([
                    // no data is lost by it: a guest's writes are thrown away with the guest
                    "-O",
                    "^has_journal",
                    "-m",
                    "0",
                ])
                .arg(folder.join("disk.raw"))
                .arg("2G"),
            "making the guest's disk",
        )?;
        fs::remove_dir_all(&root).map_err(ImageError::io("removing", &root))?;
        let mut archive = base(&kernel.modules_in_order(MODULES)?)?;
        archive.program("init", INIT.as_bytes());
        write(&folder.join("initrd.cpio"), archive)
    })?;
    Ok(DebianGuest { kernel, initrd: folder.join("initrd.cpio"), disk: folder.join("disk.raw") })
}

fn bootstrap(folder: &Path) -> Result<(), ImageError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot { image: "Debian guest" });
    }
    let archive = apt::archive()?;
    let root = folder.join("root");
    run(
        Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), &archive.suite])
            .arg(&root)
            .arg(&archive.uri),
        "making a Debian system",
    )?;
    run(Command::new("chroot").arg(&root).args(["apt-get", "clean"]), "cleaning the Debian system")?;
    let lists = root.join("var/lib/apt/lists");
    fs::remove_dir_all(&lists).map_err(ImageError::io("removing", &lists))?;
    fs::create_dir(&lists).map_err(ImageError::io("creating", &lists))
}

/// The project's own files, and the kernel's modules.
fn customise(root: &Path, kernel: &Kernel) -> Result<(), ImageError> {
    let units = root.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    let programs = root.join("usr/local/bin");
    put(&programs.join("memdex-workload"), WORKLOAD, 0o755)?;
    put(&programs.join(check::NAME), check::program()?, 0o755)?;
    let own = [
        ("memdex-workload.service", WORKLOAD_UNIT),
        ("memdex-ready.service", READY_UNIT),
        ("memdex-check.service", CHECK_UNIT),
    ];
    for (name, text) in own {
        put(&units.join(name), text, 0o644)?;
        link(&format!("../{name}"), &wanted.join(name))?;
    }
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    put(&root.join("etc/hostname"), "guest\n", 0o644)?;
    // An id of its own keeps systemd from treating every boot as the first one.
    put(&root.join("etc/machine-id"), "6d656d646578000000000000000000aa\n", 0o444)?;

    let modules = root.join("lib/modules");
    fs::create_dir_all(&modules).map_err(ImageError::io("creating", &modules))?;
    run(Command::new("cp").arg("-a").arg(&kernel.modules).arg(&modules), "copying the kernel's modules")?;
    run(Command::new("chroot").arg(root).args(["depmod", &kernel.version]), "indexing the kernel's modules")?;
    Ok(())
}

fn put(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<(), ImageError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(ImageError::io("creating", parent))?;
    }
    fs::write(path, content).map_err(ImageError::io("writing", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(ImageError::io("setting the mode of", path))
}

fn link(to: &str, path: &Path) -> Result<(), ImageError> {
    // a unit may have been enabled by its package already
    let _ = fs::remove_file(path);
    std::os::unix::fs::symlink(to, path).map_err(ImageError::io("linking", path))
}
