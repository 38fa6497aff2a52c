//! Ways to write a VM's memory that leave no trace in its page tables, as far as the VMM's open files and its command
//! line show them. Owns the look at `/proc/PID/fd`; never decides what follows from a doubt.
//!
//! Direct I/O is no doubt: each request shows in the page tables when it is submitted, and comes to an end. What counts is the file, not how requests are submitted:
//! aio contexts and io_urings read other files through the page tables like anybody else. Two things about io_urings matter all the same: registered buffers stay
//! pinned, and requests into them never show (a doubt); registered files may be open for direct I/O without being among the descriptors.

use std::{
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::FileType;

use crate::vm::{
    descriptor::ProcessId,
    processes::{ProcessDir, gone},
};

/// What `/proc/PID/fd` shows for a KVM virtual machine.
const KVM_VM: &[u8] = b"anon_inode:kvm-vm";

/// Most descriptors of a VMM that are looked at; more are counted as a doubt.
const MAX_DESCRIPTORS: usize = 8192;
/// Most bytes of one `fdinfo`. That of an io_uring lists the requests in flight.
const MAX_FDINFO: usize = 1 << 20;

/// What a VMM has open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    /// Descriptors of KVM virtual machines.
    pub(crate) kvm_vms: Vec<u32>,
    /// First device that writes guest memory by DMA.
    dma_device: Option<PathBuf>,
    /// First file opened for direct I/O, or io_uring with registered files, which may be.
    pub(crate) direct_io: Option<PathBuf>,
    /// Registered buffers of all io_urings.
    fixed_buffers: u64,
    /// Memory of a confidential guest.
    private_memory: bool,
    /// There are more descriptors than were looked at.
    too_many: bool,
    /// One was there that could not be looked at.
    unseen: bool,
}

impl OpenFiles {
    /// Looks at every descriptor of a process.
    ///
    /// # Errors
    ///
    /// If the process is gone or its descriptors may not be seen.
    pub(crate) fn of(dir: &ProcessDir, buffer: &mut Vec<u8>) -> io::Result<Self> {
        let descriptors = dir.numbers("fd", MAX_DESCRIPTORS)?;
        let mut files = Self { too_many: descriptors.len() >= MAX_DESCRIPTORS, ..Self::default() };
        for fd in descriptors {
            match dir.link(&format!("fd/{fd}")) {
                Ok(target) => files.add(dir, fd, &target, buffer),
                // A descriptor closed since is no error.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => files.unseen = true,
            }
        }
        Ok(files)
    }

    fn add(&mut self, dir: &ProcessDir, fd: u32, target: &Path, buffer: &mut Vec<u8>) {
        let name = target.as_os_str().as_bytes();
        if name == KVM_VM {
            self.kvm_vms.push(fd);
        } else if name.starts_with(b"anon_inode:[io_uring]") {
            let (buffers, files) =
                (registered(dir, fd, b"UserBufs:", buffer), registered(dir, fd, b"UserFiles:", buffer));
            self.unseen |= buffers.is_none() || files.is_none();
            self.fixed_buffers += buffers.unwrap_or(0);
            if self.direct_io.is_none() && files.is_some_and(|files| files > 0) {
                self.direct_io = Some(target.to_owned());
            }
        } else if name.windows(8).any(|part| part == b"kvm-gmem") && !name.starts_with(b"/memfd:") {
            self.private_memory = true;
        } else if writes_by_dma(name) {
            self.dma_device.get_or_insert_with(|| target.to_owned());
        } else if name.starts_with(b"/") && self.direct_io.is_none() {
            match direct_io(dir, fd, buffer) {
                Ok(true) => self.direct_io = Some(target.to_owned()),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => self.unseen = true,
            }
        }
    }

    /// A sentence for each doubt.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if let Some(device) = &self.dma_device {
            let device = printable(device);
            doubts.push(format!(
                "the VMM holds {device}: a device can write guest memory by DMA, which no page table shows"
            ));
        }
        if self.fixed_buffers > 0 {
            let count = self.fixed_buffers;
            doubts.push(format!(
                "the VMM has an io_uring with registered buffers ({count}): writes into them leave no trace in its page tables"
            ));
        }
        if self.private_memory {
            doubts.push("the guest has private memory (guest_memfd), which the host can't read".to_owned());
        }
        if self.too_many {
            doubts.push(format!(
                "the VMM has more than {MAX_DESCRIPTORS} open files, so direct I/O and devices among the rest go unnoticed"
            ));
        }
        doubts
    }
}

/// Whether, among all files that the process has open now, none is open for direct I/O. No answer is no.
pub(crate) fn no_direct_io(process: ProcessId) -> bool {
    let mut buffer = Vec::new();
    let mut look = || {
        let dir = ProcessDir::open(process.pid)?;
        let same = dir.stat(&mut buffer)?.start_time == process.start_time;
        Ok::<_, io::Error>((same, OpenFiles::of(&dir, &mut buffer)?))
    };
    look().is_ok_and(|(same, files)| same && !files.too_many && !files.unseen && files.direct_io.is_none())
}

/// Descriptors of KVM virtual machines of a process, none if it may not be looked at.
///
/// # Errors
///
/// If the process is gone.
pub(crate) fn kvm_descriptors(dir: &ProcessDir) -> io::Result<Vec<u32>> {
    match dir.numbers("fd", MAX_DESCRIPTORS) {
        Ok(descriptors) => Ok(descriptors.into_iter().filter(|fd| is_kvm_vm(dir, *fd)).collect()),
        Err(error) if gone(&error) => Err(error),
        Err(_) => Ok(Vec::new()),
    }
}

/// Whether the descriptor is a KVM virtual machine.
pub(crate) fn is_kvm_vm(dir: &ProcessDir, fd: u32) -> bool {
    dir.link(&format!("fd/{fd}")).is_ok_and(|target| target.as_os_str().as_bytes() == KVM_VM)
}

/// A file name for a message.
pub(crate) fn printable(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars().take(256).map(|letter| if letter.is_control() { '_' } else { letter }).collect()
}

/// VFIO (group, container, cdev, device), IOMMUFD, vDPA and RDMA all pin guest memory for a device.
fn writes_by_dma(name: &[u8]) -> bool {
    const DEVICES: &[&[u8]] = &[
        b"/dev/vfio/",
        b"/dev/iommu",
        b"/dev/vhost-vdpa",
        b"/dev/vhost-scsi",
        b"/dev/infiniband/",
        b"anon_inode:[vfio",
        b"anon_inode:[iommufd",
    ];
    // SCSI generic: disks passed through answer into guest memory. Not /dev/sgx…
    let generic =
        name.strip_prefix(b"/dev/sg").is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit));
    generic || DEVICES.iter().any(|device| name.starts_with(device))
}

/// Whether the descriptor is a file or disk opened with `O_DIRECT`.
fn direct_io(dir: &ProcessDir, fd: u32, buffer: &mut Vec<u8>) -> io::Result<bool> {
    dir.read(&format!("fdinfo/{fd}"), MAX_FDINFO, buffer)?;
    let flags = field(buffer, b"flags:").and_then(|text| u32::from_str_radix(text, 8).ok()).unwrap_or(0);
    if flags & libc::O_DIRECT.unsigned_abs() == 0 {
        return Ok(false);
    }
    // A pipe may have the flag too, and means something else by it.
    let stat = dir.open_target(&format!("fd/{fd}")).ok().and_then(|file| rustix::fs::fstat(file).ok());
    Ok(stat.is_none_or(|stat| {
        matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::BlockDevice)
    }))
}

/// Registered buffers or files of an io_uring; `None` if it is there and does not say.
fn registered(dir: &ProcessDir, fd: u32, what: &[u8], buffer: &mut Vec<u8>) -> Option<u64> {
    match dir.read(&format!("fdinfo/{fd}"), MAX_FDINFO, buffer) {
        Ok(_) => Some(field(buffer, what).and_then(|count| count.parse().ok()).unwrap_or(0)),
        Err(error) => (error.kind() == io::ErrorKind::NotFound).then_some(0),
    }
}

/// The value behind `name` at the beginning of a line.
fn field<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    std::str::from_utf8(line).ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};

    fn look() -> OpenFiles {
        OpenFiles::of(&ProcessDir::open(std::process::id()).unwrap(), &mut Vec::new()).unwrap()
    }

    #[test]
    fn direct_io_is_seen_and_its_end_too() {
        // In the working folder: /tmp may be a tmpfs that refuses O_DIRECT.
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file.path()).unwrap();
        let files = look();
        assert_eq!(files.direct_io.as_deref(), Some(file.path().canonicalize().unwrap().as_path()));
        assert!(files.doubts().is_empty(), "it is no doubt: {:?}", files.doubts());
        drop(direct);
        assert_eq!(look().direct_io, None);
    }

    #[test]
    fn devices_that_write_by_dma() {
        for name in [
            "/dev/vfio/vfio",
            "/dev/vfio/12",
            "/dev/vfio/devices/vfio0",
            "/dev/iommu",
            "/dev/vhost-vdpa-0",
            "/dev/vhost-scsi",
            "/dev/sg3",
            "anon_inode:[vfio-device]",
        ] {
            assert!(writes_by_dma(name.as_bytes()), "{name}");
        }
        for name in ["/dev/vhost-net", "/dev/sgx_vepc", "/dev/kvm", "/home/x/dev/vfio/1", "socket:[1]"] {
            assert!(!writes_by_dma(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn fields_of_fdinfo() {
        let text = b"pos:\t0\nflags:\t02140002\nUserBufs:\t3\n";
        assert_eq!(field(text, b"flags:"), Some("02140002"));
        assert_eq!(field(text, b"UserBufs:"), Some("3"));
        assert_eq!(field(text, b"ino:"), None);
    }
}
