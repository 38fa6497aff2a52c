//! What has to be known about a process before one of its threads is stopped: its kind, its threads, and where it has a
//! `syscall` instruction. Owns the reading of `/proc`; changes nothing.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use super::InjectError;
use crate::watch::process::{Process, gone, is_gone};

/// Threads to try.
const MOST_THREADS: usize = 8;

/// The instruction `syscall`.
pub(super) const GATE: [u8; 2] = [0x0f, 0x05];

/// Finds a `syscall` instruction the VMM can execute: in the vDSO (mapped into every process by the kernel), else in any
/// other executable mapping. Bytes inside another instruction serve as well; they are executed from their own address.
pub(super) fn find_gate(process: &Process, memory: &File) -> Result<u64, InjectError> {
    const WINDOW: u64 = 64 << 10;
    let maps =
        process.with_path("maps", fs::read_to_string).map_err(InjectError::io("read the mappings of"))?;
    let mut executable: Vec<_> = maps.lines().filter_map(executable_mapping).collect();
    executable.sort_by_key(|(_, name)| *name != "[vdso]");
    let mut readable = false;
    let mut bytes = vec![0; usize::try_from(WINDOW).unwrap_or(0)];
    // Bounded: 64 mappings, 1 MiB of each.
    for (range, name) in executable.into_iter().take(64) {
        if name == "[vsyscall]" {
            continue; // emulated: not executable as ordinary code
        }
        for start in (range.start..range.end.min(range.start + (1 << 20))).step_by(WINDOW as usize) {
            let length = WINDOW.min(range.end - start);
            let Ok(read) = memory.read_at(&mut bytes[..usize::try_from(length).unwrap_or(0)], start) else {
                break;
            };
            readable |= read > 0;
            if let Some(at) = bytes[..read].windows(GATE.len()).position(|bytes| bytes == GATE) {
                return Ok(start + at as u64);
            }
        }
    }
    // Nothing readable at all: the address space is going, the process will be gone in a moment.
    Err(if readable { InjectError::NoGate } else { InjectError::Gone })
}

/// Address range and name of a line of `/proc/PID/maps`, if it is readable and executable.
fn executable_mapping(line: &str) -> Option<(std::ops::Range<u64>, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    if !permissions.starts_with('r') || permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, fields.nth(3).unwrap_or("")))
}

pub(super) const ELFCLASS64: u8 = 2;

/// Byte 4 of the program file says how wide its addresses are.
pub(super) fn elf_class(process: &Process) -> Result<u8, InjectError> {
    let program =
        process.with_path("exe", File::open).map_err(InjectError::io("open the program file of"))?;
    let mut head = [0; 5];
    program.read_exact_at(&mut head, 0).map_err(InjectError::io("read the program file of"))?;
    Ok(head[4])
}

/// The threads to try, the main one first.
pub(super) fn threads(process: &Process) -> Result<Vec<u32>, InjectError> {
    let main = process.id().pid;
    let entries =
        fs::read_dir(format!("/proc/{main}/task")).map_err(InjectError::io("list the threads of"))?;
    let mut threads: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    threads.sort_unstable_by_key(|tid| (*tid != main, *tid));
    // A zombie main thread can't be used; leave room for it.
    threads.truncate(MOST_THREADS);
    Ok(threads)
}

/// The lines of a thread's `status` file that matter here.
pub(super) struct ThreadStatus {
    pub(super) state: char,
    pub(super) tracer: u32,
    pub(super) seccomp: bool,
}

impl ThreadStatus {
    pub(super) fn read(process: &Process, tid: u32) -> io::Result<Self> {
        let status = format!("/proc/{}/task/{tid}/status", process.id().pid);
        let text = match fs::read_to_string(status) {
            // This thread may have ended, the process lives: the same as a zombie.
            Err(error) if is_gone(&error) && process.alive() => {
                return Ok(Self { state: 'X', tracer: 0, seccomp: false });
            }
            other => other?,
        };
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        Ok(Self {
            state: field("State").and_then(|text| text.chars().next()).ok_or_else(gone)?,
            tracer: field("TracerPid").and_then(|text| text.parse().ok()).unwrap_or(0),
            seccomp: field("Seccomp").is_some_and(|text| text != "0"),
        })
    }
}
