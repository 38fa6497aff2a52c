//! A hold on one VMM process that cannot slip over to another process with the same pid.
//!
//! Owns the pidfd and the rule for opening files under `/proc/PID`. Never changes anything in the process.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::vm::descriptor::ProcessId;

/// A process that was the right one when it was opened; the pidfd keeps telling whether it still lives.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
    /// The main thread, or another one if that has ended: only a living thread shows the memory and the files.
    thread: u32,
}

impl Process {
    /// Takes hold of the process.
    ///
    /// # Errors
    /// `ESRCH` if it has ended or its pid now belongs to another process.
    pub fn open(id: ProcessId) -> io::Result<Self> {
        let pid = i32::try_from(id.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // The order matters: the pidfd names *some* process with that pid. If the start time read now is the wanted one
        // and the pidfd's process has not ended since, the two are the same.
        let mut process = Self { id, pidfd, thread: id.pid };
        let (state, started) = read_stat(&process.path("stat"))?;
        if started != id.start_time || !process.alive() {
            return Err(gone());
        }
        if state == 'Z' {
            process.thread = living_thread(id.pid).ok_or_else(gone)?;
        }
        Ok(process)
    }

    /// Which process this is.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// The pidfd, for `pidfd_getfd`.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the process still runs (as a zombie it does not).
    #[must_use]
    pub fn alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // A pidfd becomes readable when the last thread has ended. An error means "can't tell", and then every use of
        // what was opened through it fails by itself.
        !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
    }

    /// A thread that had not ended when the process was opened: the main one if possible.
    #[must_use]
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// `/proc/PID/NAME`, as the main thread or, if that has ended, another one shows it. What is opened there belongs to this process only if [`Process::alive`] is true *afterwards*.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/{name}", self.id.pid, self.thread))
    }

    /// Opens something through its name under `/proc/PID` and makes sure that the pid was not reused meanwhile.
    ///
    /// # Errors
    /// `ESRCH` if the process has ended, else what `open` says.
    pub fn with_path<T>(&self, name: &str, open: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
        let opened = open(self.path(name));
        if self.alive() { opened } else { Err(gone()) }
    }
}

/// The error for a process that is no more.
pub(crate) fn gone() -> io::Error {
    Errno::SRCH.into()
}

/// Whether an error means that the process is no more: `ESRCH`, or a missing entry of `/proc`.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH) || error.kind() == io::ErrorKind::NotFound
}

/// State and start time (fields 3 and 22) of a `stat` file. The command name may hold spaces and brackets, so counting
/// starts after the last bracket.
fn read_stat(stat: &Path) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(stat).map_err(|e| if is_gone(&e) { gone() } else { e })?;
    let parse = || {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
    };
    parse().ok_or_else(gone)
}

/// A thread that has not ended.
fn living_thread(pid: u32) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    threads.flatten().find_map(|thread| {
        let (state, _) = read_stat(&thread.path().join("stat")).ok()?;
        if matches!(state, 'Z' | 'X') { None } else { thread.file_name().to_str()?.parse().ok() }
    })
}

/// The [`ProcessId`] of a running process.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn identify(pid: u32) -> io::Result<ProcessId> {
    Ok(ProcessId { pid, start_time: read_stat(Path::new(&format!("/proc/{pid}/stat")))?.1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_found_and_lives() {
        let id = identify(std::process::id()).unwrap();
        assert!(Process::open(id).unwrap().alive());
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut id = identify(std::process::id()).unwrap();
        id.start_time += 1;
        assert!(is_gone(&Process::open(id).unwrap_err()));
    }

    #[test]
    fn an_ended_process_is_not_alive() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::open(identify(child.id()).unwrap()).unwrap();
        assert!(process.alive());
        child.kill().unwrap();
        // Not even before its parent has taken note.
        while process.alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
