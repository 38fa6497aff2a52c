//! Who else maps a VM's RAM: vhost-user back ends, virtiofsd, SPDK. Owns a memory of every process's shared
//! mappings of files; never looks at what is in them.
//!
//! Write protection belongs to one address space, so a write through another process's mapping of the same file is
//! not seen. Looking through every mapping of the host is dear. It is spread over the sweeps, and a process whose
//! address space has kept its size is left alone for a minute: a new mapping nearly always changes the size. Not so `mprotect`, which
//! makes a mapping writable that was not: so who maps RAM at all is looked at in every sweep.

use std::{
    collections::{HashMap, HashSet},
    io,
    time::{Duration, Instant},
};

use crate::vm::{
    descriptor::ProcessId,
    maps::{self, FileKey, Vma},
    processes::{Image, ProcessDir, Stat},
    table::{Process, ProcessTable},
};

/// A process that maps more is looked at this soon after the last look.
const CHANGED: Duration = Duration::from_secs(4);
/// Any process is looked at again after this time.
const UNCHANGED: Duration = Duration::from_secs(60);
/// The beat: all processes that are due have their turn within it.
const BEAT: Duration = Duration::from_millis(4500);
/// Processes in every turn, however short it is.
const LEAST: usize = 8;
/// Most bytes of one process's `maps`.
const MAX_MAPS: usize = 16 << 20;

/// Shared mappings of all processes but VMMs' own.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    known: HashMap<ProcessId, Look>,
    last_turn: Option<Instant>,
    /// Everybody's turn comes next.
    all: bool,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    image: Image,
    address_space: u64,
    /// Files that it maps shared: writable, and not.
    files: HashSet<FileKey>,
    views: HashSet<FileKey>,
}

impl Look {
    /// At one whose mappings cannot be seen.
    fn at_nothing(process: &Process, at: Instant) -> Self {
        let Stat { image, address_space, .. } = process.stat;
        Self { at, image, address_space, files: HashSet::new(), views: HashSet::new() }
    }

    fn maps(&self, ram: &HashSet<FileKey>) -> bool {
        !self.files.is_disjoint(ram) || !self.views.is_disjoint(ram)
    }
}

impl Foreign {
    /// Everybody's turn comes next.
    pub(crate) fn look_at_all(&mut self) {
        self.all = true;
    }

    /// Takes the next turn through the processes.
    /// Those that map one of `ram` and are none of `vmms` have one every time: when they stop, the VM is to be exact again.
    pub(crate) fn look(
        &mut self,
        table: &ProcessTable,
        ram: &HashSet<FileKey>,
        vmms: &HashSet<u32>,
        now: Instant,
        buffer: &mut Vec<u8>,
    ) {
        self.known.retain(|id, look| {
            table.get(id.pid).is_some_and(|process| process.id() == *id && process.stat.image == look.image)
        });
        let pause = self.last_turn.map_or(BEAT / 16, |last| now.duration_since(last)).min(BEAT);
        self.last_turn = Some(now);
        let share = table.len() as u128 * pause.as_millis() / BEAT.as_millis();
        let all = std::mem::take(&mut self.all);
        let turn = if all { table.len() } else { usize::try_from(share).unwrap_or(usize::MAX).max(LEAST) };

        let own = std::process::id();
        let maps_ram = |pid: u32, look: &Look| !vmms.contains(&pid) && look.maps(ram);
        let due: Vec<(Option<Instant>, &Process)> = table
            .iter()
            .filter(|process| {
                process.pid != own && !process.stat.kernel_thread() && (all || !process.about_to_exec(now))
            })
            .filter_map(|process| match self.known.get(&process.id()) {
                None => Some((None, process)),
                Some(look) => {
                    let changed = look.address_space != process.stat.address_space;
                    let pause = match changed {
                        _ if maps_ram(process.pid, look) => Duration::ZERO,
                        true => CHANGED,
                        false => UNCHANGED,
                    };
                    (all || now.duration_since(look.at) >= pause).then_some((Some(look.at), process))
                }
            })
            .collect();
        // Never seen first, then those that have waited longest; those that are asked every time have no part in it.
        let (every_time, mut by_turns): (Vec<_>, Vec<_>) = due.into_iter().partition(|(_, process)| {
            self.known.get(&process.id()).is_some_and(|look| maps_ram(process.pid, look))
        });
        by_turns.sort_by_key(|(last, _)| *last);
        for (_, process) in every_time.into_iter().chain(by_turns.into_iter().take(turn)) {
            match shared_files(process, buffer) {
                Ok((files, views, address_space)) => {
                    let image = process.stat.image;
                    self.known.insert(process.id(), Look { at: now, image, address_space, files, views });
                }
                // That says nothing about the process: what is known of it stays, and its turn comes again at once.
                Err(error) if short_of_something(&error) => {
                    if let Some(look) = self.known.get_mut(&process.id()) {
                        look.at = now.checked_sub(UNCHANGED).unwrap_or(look.at);
                    }
                }
                Err(_) => {
                    self.known.insert(process.id(), Look::at_nothing(process, now));
                }
            }
        }
    }

    /// Processes other than `vmm` that map one of `files` writable.
    pub(crate) fn mappers<'a>(
        &'a self,
        vmm: ProcessId,
        files: &'a [FileKey],
    ) -> impl Iterator<Item = (ProcessId, FileKey)> + 'a {
        self.known.iter().filter(move |(id, look)| **id != vmm && !look.files.is_empty()).filter_map(
            |(id, look)| files.iter().find(|file| look.files.contains(file)).map(|file| (*id, *file)),
        )
    }
}

/// Files mapped shared and writable, shared and not, and the size of the address space just before they were looked at: what the table knows may be older.
fn shared_files(
    process: &Process,
    buffer: &mut Vec<u8>,
) -> io::Result<(HashSet<FileKey>, HashSet<FileKey>, u64)> {
    let dir = ProcessDir::open(process.pid)?;
    // The pid may be another's by now; then the look counts for nobody.
    let stat = dir.stat(&mut Vec::new())?;
    if stat.start_time != process.stat.start_time {
        return Err(io::ErrorKind::NotFound.into());
    }
    dir.read("maps", MAX_MAPS, buffer)?;
    let views = shared(buffer).filter(|vma| !vma.access.write).map(|vma| vma.file).collect();
    Ok((writable(buffer).collect(), views, stat.address_space))
}

/// Whether this host, and not the process, is why something could not be read.
fn short_of_something(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// The files of the writable shared mappings in a `/proc/PID/maps`.
fn writable(text: &[u8]) -> impl Iterator<Item = FileKey> + '_ {
    shared(text).filter(|vma| vma.access.write).map(|vma| vma.file)
}

/// The shared mappings in it.
fn shared(text: &[u8]) -> impl Iterator<Item = Vma> + '_ {
    text.split(|&byte| byte == b'\n')
        // Most lines are private; a cheap test before parsing.
        .filter(|line| {
            line.iter()
                .position(|&byte| byte == b' ')
                .is_some_and(|at| line.get(at + 4).is_some_and(|shared| *shared == b's'))
        })
        .filter_map(maps::parse_line)
        .filter(|vma| vma.access.shared)
}

/// Processes other than `vmm` and ourselves that map one of `files` (device and inode) writable right now, with their names. Looks
/// through every mapping of the host: for once, not for every sweep.
pub(crate) fn writable_mappers(files: &HashSet<(u64, u64)>, vmm: u32) -> Vec<(u32, String)> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut buffer = Vec::new();
    pids.filter(|pid| *pid != own && *pid != vmm)
        .filter(|pid| {
            let read =
                ProcessDir::open(*pid).and_then(|dir| dir.read("maps", MAX_MAPS, &mut buffer).map(drop));
            read.is_ok() && writable(&buffer).any(|file| files.contains(&(file.device, file.inode)))
        })
        .map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, migrate_client::printable(name.trim()))
        })
        .collect()
}
