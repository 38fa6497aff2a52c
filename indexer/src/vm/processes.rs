//! What /proc says about one process. Owns [`ProcessDir`] (a process's folder, pinned) and [`Stat`]; never looks for
//! processes and never decides what they are.

use std::{
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::PathBuf,
};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat};

/// Flag of a kernel thread in `/proc/PID/stat` (`PF_KTHREAD` of `linux/sched.h`).
const KERNEL_THREAD: u32 = 0x0020_0000;
/// Flag of a process that was forked and has not called exec (`PF_FORKNOEXEC`).
const FORKED: u32 = 0x0000_0040;

/// A process's folder in /proc, held open. As long as this lives, everything read through it is of the *same*
/// process: when that process ends, reads fail (ESRCH) and never show another one that got its pid.
#[derive(Debug)]
pub struct ProcessDir {
    dir: OwnedFd,
}

impl ProcessDir {
    /// Opens `/proc/PID`.
    ///
    /// # Errors
    ///
    /// If there is no such process, or no descriptor to be had.
    pub fn open(pid: u32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())? })
    }

    /// Reads `name` into `out` (which is cleared first), at most `limit` bytes. False if there was more.
    ///
    /// # Errors
    ///
    /// Those of `open` and `read`; ESRCH when the process is gone.
    pub fn read(&self, name: &str, limit: usize, out: &mut Vec<u8>) -> io::Result<bool> {
        read_at(&self.dir, name, limit, out)
    }

    /// What the symbolic link `name` says.
    ///
    /// # Errors
    ///
    /// Those of `readlinkat`.
    pub fn link(&self, name: &str) -> io::Result<PathBuf> {
        let target = readlinkat(&self.dir, name, Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Opens what `name` points to, only to ask what it is.
    ///
    /// # Errors
    ///
    /// Those of `openat`.
    pub fn open_target(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(openat(&self.dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The numbers in the folder `name`, with their inode numbers: file descriptors of `fd`.
    ///
    /// # Errors
    ///
    /// Those of `openat` and `getdents64`.
    pub fn numbers(&self, name: &str, limit: usize) -> io::Result<Vec<u32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&self.dir, name, flags, Mode::empty())?;
        let mut found = Vec::new();
        for_each_number(&dir, |number, _| {
            found.push(number);
            found.len() < limit
        })?;
        Ok(found)
    }

    /// `stat` of the process.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn stat(&self, buffer: &mut Vec<u8>) -> io::Result<Stat> {
        stat_at(&self.dir, "stat", buffer)
    }
}

/// `stat` of the process whose `stat` file is `name` in `dir`.
pub(crate) fn stat_at(dir: &OwnedFd, name: &str, buffer: &mut Vec<u8>) -> io::Result<Stat> {
    // One line, far shorter than the limit, and complete in one read.
    read_at(dir, name, 1, buffer)?;
    Stat::parse(buffer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn read_at(dir: &OwnedFd, name: &str, limit: usize, out: &mut Vec<u8>) -> io::Result<bool> {
    out.clear();
    let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    loop {
        if out.len() >= limit {
            return Ok(false);
        }
        out.reserve(4096);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(out)) {
            Ok(0) => return Ok(true),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Calls `each` with the name and inode number of every entry that is a number, until it returns false.
pub(crate) fn for_each_number(dir: &OwnedFd, mut each: impl FnMut(u32, u64) -> bool) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
        if let Some(number) = number
            && !each(number, entry.ino())
        {
            break;
        }
    }
    Ok(())
}

/// What `/proc/PID/stat` says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Short name of the main thread, with anything not UTF-8 replaced.
    pub comm: String,
    /// `R`, `S`, `Z` …
    pub state: u8,
    /// Parent.
    pub parent: u32,
    /// `PF_*` flags.
    pub flags: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// Bytes of address space; changes with nearly every new mapping.
    pub address_space: u64,
    /// The program image.
    pub image: Image,
}

/// Tells one program image from the next in the same process: start of code, stack and arguments, which exec moves
/// about (address space randomization). Kept by fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image(u64, u64, u64);

impl Stat {
    /// Parses the line. The name may hold blanks and brackets: it ends at the last bracket.
    fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        // Numbered as in proc(5), where the state is field 3.
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?; // 4
        let flags = fields.nth(4)?.parse().ok()?; // 9
        let start_time = fields.nth(12)?.parse().ok()?; // 22
        let address_space = fields.next()?.parse().ok()?; // 23
        let start_code = fields.nth(2)?.parse().ok()?; // 26
        let start_stack = fields.nth(1)?.parse().ok()?; // 28
        let start_arguments = fields.nth(19)?.parse().ok()?; // 48
        let image = Image(start_code, start_stack, start_arguments);
        Some(Self { comm, state, parent, flags, start_time, address_space, image })
    }

    /// Whether it has ended and only waits for its parent to notice.
    #[must_use]
    pub const fn ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it runs in the kernel only.
    #[must_use]
    pub const fn kernel_thread(&self) -> bool {
        self.flags & KERNEL_THREAD != 0
    }

    /// Whether it is a copy of its parent that has not started a program of its own.
    #[must_use]
    pub const fn forked(&self) -> bool {
        self.flags & FORKED != 0
    }
}

/// Whether an error says that the process is gone.
pub(crate) fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = b"7 (a) R 1 (\xff) x) S 3 7 7 0 -1 4194368 1 2 3 4 5 6 7 8 20 0 13 0 2400 49696768 4310 18446744073709551615 11 12 13 0 0 0 0 4096 1256 0 0 0 17 0 0 0 0 0 0 21 22 23 48 49 50 51 0\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.comm, "a) R 1 (\u{fffd}) x");
        assert_eq!(
            (stat.state, stat.parent, stat.start_time, stat.address_space),
            (b'S', 3, 2400, 49_696_768)
        );
        assert_eq!(stat.image, Image(11, 13, 48));
        assert!(stat.forked() && !stat.kernel_thread() && !stat.ended());
    }

    #[test]
    fn a_pinned_folder_never_shows_another_process() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let dir = ProcessDir::open(child.id()).unwrap();
        let mut buffer = Vec::new();
        assert!(!dir.stat(&mut buffer).unwrap().ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(gone(&dir.stat(&mut buffer).unwrap_err()));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Stat::parse(&line);
        }
    }
}
