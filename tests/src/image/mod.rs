//! Guest images: what real guests boot from. Built once into `target/guests`, then shared by every test, the demo
//! and the benchmarks. Owns how images come to be; never starts a guest.
//!
//! - [`kernel`]: Debian's cloud kernel, downloaded and unpacked, not installed.
//! - [`tiny_guest`]: kernel and a busybox initramfs with a memory workload; boots in seconds under emulation.
//! - [`debian_guest`]: a Debian system with systemd, redis and nginx on an ext4 disk image.
//! - [`HOST_KERNELS`]: stock kernels with KVM, and [`write_initramfs`]: the host under test that boots from them.
//! - [`qemu_versions`]: the QEMU of this machine and, where that is an old one, a newer one beside it.
//!
//! Each function builds what is missing and returns at once when it is there, so a test may call it without thought.
//! Builders run one at a time (a file lock), and a half-built image is never seen (built aside, then renamed).
//! Building needs root and Debian's package tools; both are checked by `cargo xtask setup`.

mod apt;
mod check;
mod cpio;
mod debian;
mod error;
mod host;
mod host_kernel;
mod kernel;
mod modules;
mod qemu;
mod run;
mod store;
mod tiny;
mod workload;

pub use check::Check;
pub use debian::{DebianGuest, debian_guest};
pub use error::ImageError;
pub use host::{HostProgram, pack, write_initramfs};
pub use host_kernel::{HOST_KERNELS, HostKernel, HostKernelSource};
pub use kernel::{Kernel, kernel};
pub use qemu::{QemuProgram, QemuVersion, qemu_versions};
pub use store::folder;
pub use tiny::{TinyGuest, tiny_guest};
pub use workload::Workload;

/// Every guest prints this line on its serial console when its services and its workload run.
pub const READY: &str = "MEMDEX-READY";

/// Builds every image that is missing, so that no later test pays for it.
///
/// # Errors
/// The first image that can't be built, with the reason.
pub fn build_all() -> Result<(), ImageError> {
    tiny_guest()?;
    debian_guest()?;
    qemu_versions()?;
    Ok(())
}

/// True if every image is there: nothing would be built by [`build_all`].
#[must_use]
pub fn all_built() -> bool {
    store::is_built(&kernel::recipe())
        && kernel().is_ok_and(|kernel| {
            store::is_built(&tiny::recipe(&kernel)) && store::is_built(&debian::recipe(&kernel))
        })
        && qemu::all_there()
}
