//! What the running kernel can do, asked of the kernel and not of memdex.
#![expect(unsafe_code, reason = "ioctls and one page of memory of its own")]

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    ptr,
};

use crate::reporter::Reporter;

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const SOFT_DIRTY: u64 = 1 << 55;

pub(crate) struct Abilities {
    release: String,
    /// `PAGEMAP_SCAN`: Linux 6.7
    pub(crate) scan: bool,
    /// userfaultfd's asynchronous write protection: Linux 6.7
    pub(crate) write_protect: bool,
    soft_dirty: bool,
    kprobes: bool,
    module_types: bool,
}

impl Abilities {
    pub(crate) fn of_this_kernel() -> Self {
        Self {
            release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            scan: pagemap_scan(),
            write_protect: userfault_features().is_ok_and(|features| features & UFFD_FEATURE_WP_ASYNC != 0),
            soft_dirty: soft_dirty().unwrap_or(false),
            kprobes: Path::new("/sys/kernel/tracing/kprobe_events").exists(),
            module_types: Path::new("/sys/kernel/btf/kvm").exists(),
        }
    }

    /// Whether every write can be tracked page by page.
    pub(crate) fn page_by_page(&self) -> bool {
        self.scan && self.write_protect
    }

    /// Whether every write can be tracked by soft-dirty bits, for want of something better.
    pub(crate) fn whole(&self) -> bool {
        !self.page_by_page() && self.soft_dirty && self.kprobes
    }

    /// Whether every write can be tracked.
    pub(crate) fn exact(&self) -> bool {
        self.page_by_page() || self.whole()
    }

    pub(crate) fn report(&self, reporter: &mut Reporter) {
        let yes = |has: bool| if has { "yes" } else { "no" };
        reporter.fact("Linux", self.release.as_str());
        reporter.fact("KVM in a module with BTF", yes(self.module_types));
        reporter.fact("PAGEMAP_SCAN", yes(self.scan));
        reporter.fact("userfaultfd WP_ASYNC", yes(self.write_protect));
        reporter.fact("soft-dirty", yes(self.soft_dirty));
        reporter.fact("kprobes", yes(self.kprobes));
    }
}

/// KVM is there, and the guest's writes are faults of the second stage: on these the programs are tried.
pub(crate) fn two_stage_kvm() -> Result<String, String> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| format!("/dev/kvm can't be opened: {error}"))?;
    let npt = fs::read_to_string("/sys/module/kvm_amd/parameters/npt")
        .map_err(|error| format!("the module kvm_amd is not there: {error}"))?;
    if npt.starts_with(['Y', '1']) { Ok("npt".to_owned()) } else { Err(format!("npt is {}", npt.trim())) }
}

/// Only a kernel without it says that there is no such ioctl.
fn pagemap_scan() -> bool {
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return false };
    let mut argument = [0_u64; 12];
    argument[0] = size_of_val(&argument) as u64;
    // SAFETY: the argument is as long as the kernel's structure, and with an empty range nothing else is written.
    let answer = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, argument.as_mut_ptr()) };
    answer >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOTTY)
}

fn userfault_features() -> io::Result<u64> {
    // SAFETY: a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // api, features, ioctls
    let mut argument = [0xaa_u64, 0, 0];
    // SAFETY: the argument is the kernel's structure.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, argument.as_mut_ptr()) };
    if answer == 0 { Ok(argument[1]) } else { Err(io::Error::last_os_error()) }
}

/// Whether a written page is reported, and only after it was written.
fn soft_dirty() -> io::Result<bool> {
    // SAFETY: a new mapping, never unmapped.
    let page = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), 4096, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let pagemap = File::open("/proc/self/pagemap")?;
    let reported = || {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, page as u64 / 4096 * 8)?;
        io::Result::Ok(u64::from_le_bytes(entry) & SOFT_DIRTY != 0)
    };
    // SAFETY: in the mapping.
    let write = || unsafe { page.cast::<u8>().write_volatile(1) };
    write();
    fs::write("/proc/self/clear_refs", "4")?;
    let before = reported()?;
    write();
    Ok(!before && reported()?)
}
