//! All processes of the host, refreshed at little cost. Owns which of them are looked at when; never decides which
//! one is a VM.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Mode, OFlags, SeekFrom, openat};

use crate::vm::{
    descriptor::ProcessId,
    processes::{Stat, for_each_number, gone, stat_at},
};

/// How often an old process that is no VM is asked which program it runs: it may turn into a VMM by exec, without a
/// new pid.
const PROGRAM_EVERY: Duration = Duration::from_millis(600);
/// How often everything is read anew of an old process.
pub(crate) const STAT_EVERY: Duration = Duration::from_secs(2);
/// The same where new mappings have to be noticed soon.
pub(crate) const STAT_OFTEN: Duration = PROGRAM_EVERY;
/// A child that has not called exec after this time is not about to.
const FRESH_FORK: Duration = Duration::from_secs(1);
/// A process younger than this is looked at in every sweep: most VMMs are a fork that calls exec a moment later.
const YOUNG: Duration = Duration::from_secs(3);

/// One process in the table.
#[derive(Debug)]
pub(crate) struct Process {
    /// Process id.
    pub(crate) pid: u32,
    /// State when last looked at.
    pub(crate) stat: Stat,
    /// When this image of the process was seen first.
    pub(crate) seen: Instant,
    /// Inode number of its folder: another process with the same pid has another one.
    inode: u64,
    /// Fingerprint of the link to its program.
    program: Option<u64>,
    /// When the program was looked at.
    asked: Instant,
    /// When everything was read.
    read: Instant,
}

impl Process {
    /// Which process it is.
    #[must_use]
    pub(crate) const fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_time: self.stat.start_time }
    }

    /// Whether it is a fresh fork: it still has its parent's mappings, and most call exec in a moment.
    #[must_use]
    pub(crate) fn about_to_exec(&self, now: Instant) -> bool {
        self.stat.forked() && now.duration_since(self.seen) < FRESH_FORK
    }

    /// Whether it was started, or called exec, just now.
    #[must_use]
    pub(crate) fn young(&self, now: Instant) -> bool {
        now.duration_since(self.seen) < YOUNG
    }
}

/// All processes.
#[derive(Debug, Default)]
pub(crate) struct ProcessTable {
    processes: HashMap<u32, Process>,
    /// /proc itself; kept open, so that a lack of descriptors does not make all VMs disappear.
    proc: Option<Arc<OwnedFd>>,
    /// When the table was made.
    start: Option<Instant>,
    buffer: Vec<u8>,
}

impl ProcessTable {
    /// Brings the table up to date. `often` tells for which processes every sweep counts; of other old ones everything is
    /// read anew after `pause`.
    ///
    /// # On telling processes apart at little cost
    ///
    /// Listing /proc takes a microsecond a process, reading `stat` ten to twenty. The listing also gives the inode
    /// number of each folder, and the kernel never gives the folders of two processes with the same pid the same number
    /// (`proc_pid_make_inode` takes the next one of a counter). So a known number needs no look for pid reuse, and what
    /// is left is exec, which old processes seldom do: a system call each tells whether the program is still the same.
    /// Kernel threads never are anything else. The looks of different processes are spread over the sweeps.
    ///
    /// # Errors
    ///
    /// If /proc can't be listed.
    pub(crate) fn refresh(
        &mut self,
        now: Instant,
        pause: Duration,
        often: impl Fn(u32) -> bool,
    ) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = match &self.proc {
            Some(proc) => proc.clone(),
            None => self.proc.insert(Arc::new(openat(CWD, "/proc", flags, Mode::empty())?)).clone(),
        };
        rustix::fs::seek(&proc, SeekFrom::Start(0))?;
        let mut listed = HashMap::with_capacity(self.processes.len() + 16);
        for_each_number(&proc, |pid, inode| {
            listed.insert(pid, inode);
            true
        })?;

        self.processes.retain(|pid, _| listed.contains_key(pid));
        for (&pid, &inode) in &listed {
            if !self.unchanged(&proc, pid, inode, now, pause, &often) {
                self.read(&proc, pid, inode, now);
            }
        }
        Ok(())
    }

    /// Whether what is known of a process may stand.
    fn unchanged(
        &mut self,
        proc: &OwnedFd,
        pid: u32,
        inode: u64,
        now: Instant,
        pause: Duration,
        often: &impl Fn(u32) -> bool,
    ) -> bool {
        let start = *self.start.get_or_insert(now);
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.inode == inode) else {
            return false;
        };
        if process.stat.kernel_thread() {
            return true;
        }
        if often(pid) || process.young(now) || due(start, process.read, now, pause, pid) {
            return false;
        }
        if due(start, process.asked, now, PROGRAM_EVERY, pid) {
            process.asked = now;
            return process.program.is_some() && program(proc, pid) == process.program;
        }
        true
    }

    fn read(&mut self, proc: &OwnedFd, pid: u32, inode: u64, now: Instant) {
        let known = self.processes.get(&pid);
        match stat_at(proc, &format!("{pid}/stat"), &mut self.buffer) {
            Ok(stat) if stat.ended() => drop(self.processes.remove(&pid)),
            Ok(stat) => {
                let same = known.filter(|process| {
                    process.stat.start_time == stat.start_time && process.stat.image == stat.image
                });
                let seen = same.map_or(now, |process| process.seen);
                let program = if stat.kernel_thread() { None } else { program(proc, pid) };
                self.processes
                    .insert(pid, Process { pid, stat, seen, inode, program, asked: now, read: now });
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
    pub(crate) fn get(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// All processes, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Number of processes.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.processes.len()
    }
}

/// Whether it is this process's turn. Time is cut into pieces as long as `pause`, at other points for each process.
fn due(start: Instant, last: Instant, now: Instant, pause: Duration, pid: u32) -> bool {
    let piece = |at: Instant| {
        let phase = u128::from(pid.wrapping_mul(2_654_435_761) >> 8) % pause.as_millis().max(1);
        (at.saturating_duration_since(start).as_millis() + phase) / pause.as_millis().max(1)
    };
    piece(last) != piece(now)
}

/// Fingerprint of the link to the program a process runs; None if it may not be seen.
fn program(proc: &OwnedFd, pid: u32) -> Option<u64> {
    let mut buffer = [0u8; 512];
    let len = rustix::fs::readlinkat_raw(proc, format!("{pid}/exe"), &mut buffer).ok()?;
    let mut hasher = DefaultHasher::new();
    buffer[..len].hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refreshed(table: &mut ProcessTable, now: Instant) {
        table.refresh(now, STAT_EVERY, |_| false).unwrap();
    }

    #[test]
    fn this_process_is_in_the_table_and_keeps_its_identity() {
        let mut table = ProcessTable::default();
        refreshed(&mut table, Instant::now());
        let id = table.get(std::process::id()).unwrap().id();
        let seen = table.get(id.pid).unwrap().seen;
        refreshed(&mut table, Instant::now());
        assert_eq!(table.get(id.pid).unwrap().id(), id);
        assert_eq!(table.get(id.pid).unwrap().seen, seen);
        assert!(table.len() > 1);
    }

    #[test]
    fn an_ended_process_leaves_even_if_nobody_waits_for_it() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let mut table = ProcessTable::default();
        refreshed(&mut table, Instant::now());
        assert!(table.get(child.id()).is_some());
        child.kill().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        refreshed(&mut table, Instant::now());
        assert!(table.get(child.id()).is_none());
        child.wait().unwrap();
    }

    #[test]
    fn an_old_process_is_looked_at_in_time_and_not_more_often() {
        let start = Instant::now();
        for pid in 1..2000 {
            let (mut last, mut looks) = (start, 0u32);
            for tick in 1..=100u32 {
                let now = start + tick * Duration::from_millis(300);
                if due(start, last, now, PROGRAM_EVERY, pid) {
                    assert!(now - last <= Duration::from_millis(900));
                    (last, looks) = (now, looks + 1);
                }
            }
            assert!(looks <= 51, "{looks}");
        }
    }
}
