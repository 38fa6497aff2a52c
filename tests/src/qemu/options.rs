//! What a guest is made of. Owns the choices; the command line they become is in [`super::command`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::image::{self, Check, QemuProgram, Workload};

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU's translator.
    Tcg,
    /// Hardware virtualization, or KVM's instruction emulator for guests that are only firmware.
    Kvm,
}

impl Accelerator {
    /// What a full guest can use on this machine: KVM needs vmx or svm for more than firmware.
    #[must_use]
    pub fn for_guests() -> Self {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let hardware = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        if hardware && Path::new("/dev/kvm").exists() { Self::Kvm } else { Self::Tcg }
    }
}

/// What the RAM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A shared file at this path. One that is there already keeps its content: a VM that comes back finds its own.
    File(PathBuf),
    /// A memfd.
    Memfd,
    /// QEMU's private memory.
    Plain,
}

/// What a guest boots.
#[derive(Debug, Clone)]
pub struct Boot {
    /// `-kernel`
    pub kernel: PathBuf,
    /// `-initrd`
    pub initrd: PathBuf,
    /// `-append`
    pub command_line: String,
}

impl Boot {
    /// The tiny guest with this workload and, if wanted, the check of its own memory.
    ///
    /// # Panics
    /// If its image can't be built.
    #[must_use]
    pub fn tiny(workload: &Workload, check: Option<&Check>) -> Self {
        let guest = image::tiny_guest().expect("the tiny guest's image");
        let command_line = with_check(guest.command_line(workload), check);
        Self { kernel: guest.kernel.vmlinuz, initrd: guest.initrd, command_line }
    }
}

fn with_check(command_line: String, check: Option<&Check>) -> String {
    match check {
        Some(check) => format!("{command_line} {check}"),
        None => command_line,
    }
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which QEMU; the system's own if none is named.
    pub qemu: Option<QemuProgram>,
    /// Machine type. Guests that move between two versions of QEMU need one that both have, as `pc-q35-7.2`.
    pub machine: String,
    /// Size of RAM.
    pub mib: u64,
    /// What the RAM is.
    pub backend: Backend,
    /// Leave the RAM file where it is at the end; whoever wants that removes it.
    pub keep_ram: bool,
    /// What executes guest code.
    pub accelerator: Accelerator,
    /// Linux, or only firmware.
    pub boot: Option<Boot>,
    /// A raw disk image of this guest alone, `/dev/vda`; its writes stay in it.
    pub disk: Option<PathBuf>,
    /// How QEMU opens it, as `cache=none,aio=native`; by default through the host's page cache.
    pub disk_access: &'static str,
    /// Wait for a guest that migrates here (`-incoming defer`) instead of booting one.
    pub incoming: bool,
    /// Run as this user.
    pub uid: Option<u32>,
    /// With a virtio balloon.
    pub balloon: bool,
    /// MiB of memory that can be plugged in later.
    pub hotplug_mib: u64,
    /// Value of `-name`, if it is not to be the name given at the start.
    pub name: Option<String>,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Options {
    /// A firmware-only guest of `mib` MiB.
    #[must_use]
    pub fn firmware(mib: u64, backend: Backend, accelerator: Accelerator) -> Self {
        Self {
            qemu: None,
            machine: "q35".to_owned(),
            mib,
            backend,
            keep_ram: false,
            accelerator,
            boot: None,
            disk: None,
            disk_access: "cache=writeback",
            incoming: false,
            uid: None,
            balloon: false,
            hotplug_mib: 0,
            name: None,
            arguments: Vec::new(),
        }
    }

    /// A Linux guest of `mib` MiB under the best accelerator there is.
    #[must_use]
    pub fn linux(mib: u64, backend: Backend, boot: Boot) -> Self {
        Self { boot: Some(boot), ..Self::firmware(mib, backend, Accelerator::for_guests()) }
    }

    /// A Debian guest that can migrate: its disk is a copy of the image at `disk` (in the test's own folder), which the
    /// source and every destination open by the same name. Not for guests that stay: those share one image, see
    /// [`image::DebianGuest::drive`].
    ///
    /// # Panics
    /// If its image can't be built, or not be copied.
    #[must_use]
    pub fn debian(
        mib: u64,
        backend: Backend,
        disk: PathBuf,
        workload: &Workload,
        check: Option<&Check>,
    ) -> Self {
        let guest = image::debian_guest().expect("the Debian guest's image");
        guest.copy_disk(&disk).expect("the Debian guest's disk can be copied");
        let command_line = with_check(guest.command_line(workload), check);
        let boot = Boot { kernel: guest.kernel.vmlinuz, initrd: guest.initrd, command_line };
        Self { disk: Some(disk), ..Self::linux(mib, backend, boot) }
    }

    /// Where a guest of these options can migrate to: the same machine with its RAM elsewhere, waiting.
    #[must_use]
    pub fn destination(&self, backend: Backend) -> Self {
        Self { backend, incoming: true, ..self.clone() }
    }
}
