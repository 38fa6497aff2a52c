//! Processes and how to tell them apart. Owns [`ProcessDir`] (one process's folder in /proc, pinned) and
//! [`ProcessTable`] (all processes, refreshed at little cost); never decides which process is a VM.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, readlinkat};

use crate::vm::descriptor::ProcessId;

/// Flag of a kernel thread in `/proc/PID/stat` (`PF_KTHREAD` of `linux/sched.h`).
const KERNEL_THREAD: u32 = 0x0020_0000;
/// Flag of a process that was forked and has not called exec (`PF_FORKNOEXEC`).
const FORKED: u32 = 0x0000_0040;

/// How often an old process that is no VM is looked at. It may turn into one by exec, without a new pid.
const LOOK_EVERY: Duration = Duration::from_millis(600);
/// A process younger than this is looked at in every sweep: most VMMs are a fork that calls exec a moment later.
const YOUNG: Duration = Duration::from_secs(3);

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
        out.clear();
        let file = openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
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
        self.read("stat", 4096, buffer)?;
        Stat::parse(buffer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// Calls `each` with the name and inode number of every entry that is a number, until it returns false.
fn for_each_number(dir: &OwnedFd, mut each: impl FnMut(u32, u64) -> bool) -> io::Result<()> {
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

/// One process in the table.
#[derive(Debug)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// State when last looked at.
    pub stat: Stat,
    /// When this image of the process was seen first.
    pub seen: Instant,
    /// Inode number of its folder: another process with the same pid has another one.
    inode: u64,
    looked: Instant,
}

impl Process {
    /// Which process it is.
    #[must_use]
    pub const fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_time: self.stat.start_time }
    }

    /// Whether it was started, or called exec, just now.
    #[must_use]
    pub fn young(&self, now: Instant) -> bool {
        now.duration_since(self.seen) < YOUNG
    }
}

/// All processes.
#[derive(Debug, Default)]
pub struct ProcessTable {
    processes: HashMap<u32, Process>,
    /// /proc itself; kept open, so that a lack of descriptors does not make all VMs disappear.
    proc: Option<OwnedFd>,
    buffer: Vec<u8>,
}

impl ProcessTable {
    /// Brings the table up to date. `often` tells for which processes every sweep counts.
    ///
    /// # On telling processes apart at little cost
    ///
    /// Listing /proc takes a microsecond a process, reading `stat` several. The listing also gives the inode number
    /// of each folder, and the kernel never gives the folders of two processes with the same pid the same number
    /// (`proc_pid_make_inode` takes the next one of a counter). So a known number needs no look for pid reuse, and what
    /// is left is exec, which old processes seldom do: they are looked at every 0.6 s, kernel threads never.
    ///
    /// # Errors
    ///
    /// If /proc can't be listed.
    pub fn refresh(&mut self, now: Instant, often: impl Fn(u32) -> bool) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = match self.proc.take() {
            Some(proc) => proc,
            None => openat(CWD, "/proc", flags, Mode::empty())?,
        };
        let proc = self.proc.insert(proc);
        rustix::fs::seek(&*proc, SeekFrom::Start(0))?;
        let mut listed = HashMap::with_capacity(self.processes.len() + 16);
        for_each_number(proc, |pid, inode| {
            listed.insert(pid, inode);
            true
        })?;

        self.processes.retain(|pid, _| listed.contains_key(pid));
        for (&pid, &inode) in &listed {
            self.look(pid, inode, now, &often);
        }
        Ok(())
    }

    fn look(&mut self, pid: u32, inode: u64, now: Instant, often: &impl Fn(u32) -> bool) {
        let known = self.processes.get(&pid);
        if let Some(process) = known
            && process.inode == inode
            && (process.stat.kernel_thread()
                || !often(pid) && !process.young(now) && now.duration_since(process.looked) < LOOK_EVERY)
        {
            return;
        }
        match ProcessDir::open(pid).and_then(|dir| dir.stat(&mut self.buffer)) {
            Ok(stat) if stat.ended() => drop(self.processes.remove(&pid)),
            Ok(stat) => {
                let same = known.filter(|process| {
                    process.stat.start_time == stat.start_time && process.stat.image == stat.image
                });
                let seen = same.map_or(now, |process| process.seen);
                self.processes.insert(pid, Process { pid, stat, seen, inode, looked: now });
            }
            // Out of descriptors or memory says nothing about the process; what is known stays if it is the same.
            Err(error) if gone(&error) || known.is_none_or(|process| process.inode != inode) => {
                self.processes.remove(&pid);
            }
            Err(_) => {}
        }
    }

    /// The process with this pid.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// All processes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Number of processes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Whether no process is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
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
    fn this_process_is_in_the_table_and_keeps_its_identity() {
        let mut table = ProcessTable::default();
        table.refresh(Instant::now(), |_| true).unwrap();
        let id = table.get(std::process::id()).unwrap().id();
        let seen = table.get(id.pid).unwrap().seen;
        table.refresh(Instant::now(), |_| true).unwrap();
        assert_eq!(table.get(id.pid).unwrap().id(), id);
        assert_eq!(table.get(id.pid).unwrap().seen, seen);
        assert!(table.len() > 1);
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
        let mut table = ProcessTable::default();
        table.refresh(Instant::now(), |_| true).unwrap();
        assert!(table.get(child.id()).is_none());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Stat::parse(&line);
        }
    }
}
