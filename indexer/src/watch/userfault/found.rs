//! What a daemon left in a VMM: userfaultfds in the mode we use, told apart by name and by what they do.
//!
//! Owns finding, naming and closing them. Never arms anything.

use std::{
    fs, io,
    ops::Range,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::OnceLock,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use serde::{Deserialize, Serialize};

use super::{AttachError, FEATURES, FLAGS, register, request, unregister, wrap};
use crate::{
    units::Hva,
    vm::descriptor::ProcessId,
    watch::{
        inject::{self, Call},
        pagemap::Pagemap,
        process::Process,
    },
};

/// Names a userfaultfd: its number in the VMM, and the inode that the kernel gave it alone.
///
/// What the page table says of earlier writes is worth something only to whoever knows that nobody else has armed pages meanwhile. Whoever arms pages of a VM without
/// going on where the last one stopped does so with a new userfaultfd, and so takes this name away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub(super) number: i32,
    pub(super) inode: u64,
}

/// A userfaultfd that was found in a process.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) number: i32,
    pub(super) fd: OwnedFd,
}

/// Closes every userfaultfd that a daemon left in the process: the one of this name, and those that have registered anything of its address space. Then the VMM is as
/// it was before any daemon came. Returns how many there were. The caller has to hold the [claim](super::claim) on the process.
///
/// # Errors
/// See [`AttachError`].
pub fn detach(process: ProcessId, token: Option<Token>) -> Result<usize, AttachError> {
    let process = Process::open(process).map_err(wrap("attach to"))?;
    let found = left_behind(&process)?;
    if found.is_empty() {
        return Ok(0);
    }
    let smaps = process.with_path("smaps", fs::read_to_string).map_err(wrap("read the mappings of"))?;
    let ranges = registered(&smaps);
    let mut closed = 0;
    for found in found {
        let named =
            token.is_some_and(|token| token.number == found.number && inode(&found.fd) == Some(token.inode));
        // Asking unregisters what is this one's, and leaves alone what is another's (of a snapshot, say).
        let ours = ranges.iter().filter(|range| found.acts_on(process.id(), range)).count();
        if named || ours > 0 {
            found.close(&process)?;
            closed += 1;
        }
    }
    Ok(closed)
}

/// The mappings that some userfaultfd watches for writes (`uw` in the flags of smaps).
fn registered(smaps: &str) -> Vec<Range<Hva>> {
    let mut ranges = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).ok();
            current = number(start).zip(number(end)).map(|(start, end)| Hva(start)..Hva(end));
        } else if first == "VmFlags:" && line.split(' ').any(|flag| flag == "uw") {
            ranges.extend(current.take());
        }
    }
    ranges
}

/// The userfaultfds in the process that are in the mode we use. Nothing but memdex uses WP_ASYNC in a VMM: QEMU's postcopy and
/// background snapshots wait for faults, which is the point of them.
pub(super) fn left_behind(process: &Process) -> Result<Vec<Candidate>, AttachError> {
    let entries = process.with_path("fd", fs::read_dir).map_err(wrap("list the open files of"))?;
    let numbers = entries.flatten().filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        (target.as_os_str() == KIND).then_some(entry.file_name().to_str()?.parse::<i32>().ok()?)
    });
    Ok(numbers.filter_map(|number| Candidate::at(process, number)).collect())
}

/// What a link to a userfaultfd in /proc/PID/fd says.
const KIND: &str = "anon_inode:[userfaultfd]";

impl Candidate {
    /// Whether registering with this descriptor makes the range watched in this process and unregistering ends that. (One direction is not
    /// enough: another descriptor may have registered the range before.)
    pub(super) fn acts_on(&self, process: ProcessId, range: &Range<Hva>) -> bool {
        let fd = &self.fd;
        let Ok(pagemap) = Pagemap::open(process) else { return false };
        let watched = || pagemap.watched(range.clone()).is_ok();
        if register(fd, range).is_err() || !watched() || unregister(fd, range).is_err() {
            return false;
        }
        if !watched() {
            return true;
        }
        // It acts on another process, from which this one was forked, and has taken the protection from its pages. Registered again, all of them show as written: whoever
        // watches that process reads them anew.
        let _ = register(fd, range);
        false
    }

    /// The userfaultfd of this number, if it is one in the mode we use.
    pub(super) fn at(process: &Process, number: i32) -> Option<Self> {
        let info = process.with_path(&format!("fdinfo/{number}"), fs::read_to_string).ok()?;
        if features(&info)? & FEATURES != FEATURES {
            return None;
        }
        Some(Self { number, fd: fetch(process, number).ok()? })
    }

    /// Makes the VMM close it. With the last copy goes all that it has registered and armed.
    pub(super) fn close(self, process: &Process) -> Result<(), AttachError> {
        let Self { number, fd } = self;
        // It may have been closed, and the number be another file's by now.
        let same = Self::at(process, number).is_some_and(|found| inode(&found.fd) == inode(&fd));
        if same {
            let arguments = [u64::try_from(number).unwrap_or(u64::MAX), 0, 0];
            inject::call(process, Call { number: libc::SYS_close, arguments })?;
        }
        Ok(())
    }
}

/// The inode that the kernel gave a userfaultfd. `None` where it gives all of them the same one, so that it names none.
pub(super) fn inode(fd: &OwnedFd) -> Option<u64> {
    static SHARED: OnceLock<Option<u64>> = OnceLock::new();
    let number =
        |fd: &OwnedFd| fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok().map(|file| file.ino());
    let shared = SHARED.get_or_init(|| {
        let (one, other) = (request::own(FLAGS).ok()?, request::own(FLAGS).ok()?);
        number(&one).filter(|inode| number(&other) == Some(*inode))
    });
    number(fd).filter(|inode| Some(*inode) != *shared)
}

/// The features in an fdinfo file: a line `API:`, the version, the features and the ioctls, in hex with colons between.
pub(super) fn features(fdinfo: &str) -> Option<u64> {
    let api = fdinfo.lines().find_map(|line| line.strip_prefix("API:"))?;
    u64::from_str_radix(api.trim().split(':').nth(1)?, 16).ok()
}

/// A copy of a userfaultfd of the process.
pub(super) fn fetch(process: &Process, number: i32) -> io::Result<OwnedFd> {
    let fd = if process.thread() == process.id().pid {
        pidfd_getfd(process.pidfd(), number, PidfdGetfdFlags::empty())?
    } else {
        // A main thread that has ended holds no files any more; ask a living one (PIDFD_THREAD, Linux 6.9).
        let thread = i32::try_from(process.thread()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let thread = pidfd_open(thread, PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned()))?;
        pidfd_getfd(thread, number, PidfdGetfdFlags::empty())?
    };
    // Numbers are reused quickly in a live process.
    let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if target.as_os_str() == KIND { Ok(fd) } else { Err(Errno::BADF.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_shows_what_is_watched() {
        let smaps = "\
1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nVmFlags: rd wr mr \n\
7f0000000000-7f0000002000 rw-s 00000000 00:01 5 /memfd:ram (deleted)\nSize: 8 kB\nVmFlags: rd wr sh uw mr \n";
        assert_eq!(registered(smaps), [Hva(0x7f00_0000_0000)..Hva(0x7f00_0000_2000)]);
    }

    #[test]
    fn fdinfo_shows_the_features() {
        assert_eq!(features("pos:\t0\npending:\t0\ntotal:\t0\nAPI:\taa:8000b001:1c7\n"), Some(0x8000_b001));
        assert_eq!(features("pos:\t0\n"), None);
        assert_eq!(features("API:\taa\n"), None);
    }
}
