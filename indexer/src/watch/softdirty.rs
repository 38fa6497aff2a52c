//! Arming where userfaultfd can't: soft-dirty bits, on kernels before 6.7.
//!
//! Owns `/proc/PID/clear_refs` and the knowledge whether this kernel keeps the bits
//! (Documentation/admin-guide/mm/soft-dirty.rst). Reading them is [`super::entries`]'s, when to clear them the [tracker](super::tracker)'s.
//! Nothing is injected into the VMM and no thread of it is stopped.
//!
//! # On clearing bits, and why no write is lost
//!
//! Writing `4` to `clear_refs` clears the bits of a *whole process* and write-protects it: the call holds the lock of the address space,
//! calls KVM's notifiers over all of it (so that guests fault again, too), and empties the translation caches before it returns. It can't
//! be had for a single page, and it can't be had together with reading: what is written between reading the bits and clearing them has
//! no bit afterwards. So bits alone can't be exact, and where nothing else watches, this witness is not used.
//!
//! With eBPF marks they can, because a mark comes *before* the write:
//!
//! 1. A page that the map shows as known was protected before it was read, and has had no mark since: it is not writable.
//! 2. Its first write takes a fault, and every fault, whoever has it, goes through `handle_mm_fault`, where a mark is left. A fault holds the lock of
//!    the address space from there until it is resolved, and a clearing wants that lock for itself: none comes between mark and resolution. (From 6.4
//!    on faults lock single mappings; there this witness is not used.)
//! 3. So whatever is written between reading and clearing has a mark, which nobody has taken: it is taken after the clearing, and
//!    the page is stale. No marks are taken in between that would not be.
//! 4. And a page that is to be read has to have been armed by the last clearing and to have no mark since: who was written after it is writable,
//!    and waits for the next one (*spent*). Before a batch is published its bits and its marks are looked at, as always.
//! 5. No bits are cleared while a batch is being read: its check could not see any more what was written.
//!
//! One round is therefore: take the marks, scan everything (written → stale), clear, take the marks again; then any number of batches
//! *read → hash → check → publish*, until too many pages wait for the next round. It costs the guest a fault for every page it uses, so it is
//! made as seldom as its price is high; see [the tracker](super::tracker)'s `whole`.
//!
//! What could get round it, and what is done:
//!
//! - *A page under migration* (compaction, NUMA) has no entry that could be protected: a migration entry loses its bit and comes back as
//!   writable as it was. Only pages that were writable before can be harmed, never one that is known. Migrations are counted, in and out: if
//!   one was under way during a clearing, nothing that was not known before counts as armed by it.
//! - *A new mapping* is soft-dirty as a whole until it is cleared: all of it reads as written, which is right. Made between reading and
//!   clearing it would go unnoticed: so `mmap`, `munmap` and `mremap` over guest memory count as discards, and the mappings of a region
//!   are compared with what they were, after each clearing and several times a second.
//! - *Entries that vanish* (reclaim, `MADV_DONTNEED` on shared memory, KSM) take their bit with them, and come back by a read without one.
//!   They come back protected, though (the mapping is not soft-dirty), and the write that was noted there has left its mark. A discard is hooked as ever.
//!   An entry that is not there is protected in shared memory; in anonymous memory it means that the content is gone.
//! - *Huge pages* have one bit and one fault for 512 pages, and khugepaged makes new ones writable without any fault. Regions that may have
//!   them are read again instead, and say so: shared memory has none by default, anonymous memory only if the host has switched them off.
//!   hugetlbfs keeps no bits.
//! - *Somebody else* who clears bits (CRIU) takes from us the second witness, not the first: he protects, too, and the marks stay. He is
//!   counted, and the log says so.
//! - *Programs that are left out*: the kernel runs no eBPF program of a tracepoint or kprobe while a map is being changed on the same
//!   processor (`bpf_prog_active`). Where tasks are preempted in the kernel, a fault may come by in that time and leave no mark. So the kernel
//!   must not be one that preempts itself ([`unpreempted`]).
//! - *Direct I/O* that was under way before: as with any protection, what was read meanwhile is *unsettled* ([`super::unsettled`]). What is
//!   submitted later pins its pages through `handle_mm_fault`.
//! - *The kernel's own copies into pinned pages* (`process_vm_writev`, a debugger's `/proc/PID/mem`) land some microseconds after the fault.
//!   Before a marked page is read a scan has to have seen its bit, and a clearing has to follow: a copy that takes longer than that is lost.
//!   The same holds for userfaultfd.
//!
//! # Minimum kernel version
//! 6.1 to 6.3 with CONFIG_MEM_SOFT_DIRTY, CONFIG_KPROBES and CONFIG_MEMCG, as Debian 12 has. From 6.7 on nobody asks for it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
};

use memdex_wire::PAGE_SIZE;

use super::{
    entries::SOFT_DIRTY,
    pagemap::{Pagemap, ScanError},
    process::{Process, is_gone},
    userfault::ArmError,
};
use crate::{
    units::Hva,
    vm::{
        descriptor::ProcessId,
        maps::{self, FileKey},
    },
};

/// Clears the bits.
const CLEAR: &[u8] = b"4";

/// The soft-dirty bits of one process.
#[derive(Debug)]
pub(super) struct SoftDirty {
    process: Process,
    clear_refs: File,
    /// What was mapped in each range when it was registered.
    registered: Mutex<Vec<(Range<Hva>, Vec<Mapped>)>>,
}

/// What is mapped in a part of a range. Neighbours that go on in the same file are one: the kernel splits and merges mappings as it likes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapped {
    range: Range<u64>,
    shared: bool,
    file: FileKey,
    offset: u64,
}

/// Whether this kernel is one to use the bits on: it keeps them and has nothing better.
pub(super) fn wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| matches!(Pagemap::probe(), Err(ScanError::Unsupported(_))) && kept())
}

/// Whether no task is preempted in this kernel; else why that matters, and what to do.
pub(super) fn unpreempted() -> Result<(), String> {
    let chosen = fs::read_to_string("/sys/kernel/debug/sched/preempt").ok();
    judge_preemption(chosen.as_deref(), &fs::read_to_string("/proc/version").unwrap_or_default())
}

/// `chosen`: the model in brackets, as `none (voluntary) full`, where it can be chosen at boot and debugfs is mounted.
fn judge_preemption(chosen: Option<&str>, version: &str) -> Result<(), String> {
    match chosen {
        Some(models) if ["(none)", "(voluntary)"].iter().any(|model| models.contains(model)) => Ok(()),
        None if version.contains("PREEMPT_DYNAMIC") => {
            Err("whether this kernel preempts itself can't be told: mount debugfs at /sys/kernel/debug".to_owned())
        }
        None if !version.contains("PREEMPT") => Ok(()),
        _ => Err("this kernel preempts itself, and then leaves eBPF programs out at times: boot it with preempt=voluntary".to_owned()),
    }
}

/// Whether this kernel keeps the bits; tried on the daemon's own memory. Without CONFIG_MEM_SOFT_DIRTY clearing succeeds and all bits are 0.
fn kept() -> bool {
    // A mapping that grows meanwhile is soft-dirty as a whole.
    (0..5).any(|_| shows_writes().unwrap_or(false))
}

fn shows_writes() -> io::Result<bool> {
    let memory: Vec<AtomicU8> = (0..2 * PAGE_SIZE).map(|_| AtomicU8::new(1)).collect();
    let page = (memory.as_ptr() as usize).next_multiple_of(PAGE_SIZE);
    let byte = &memory[page - memory.as_ptr() as usize];
    let pagemap = File::open("/proc/self/pagemap")?;
    let shown = || {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (page / PAGE_SIZE * 8) as u64)?;
        io::Result::Ok(u64::from_le_bytes(entry) & SOFT_DIRTY != 0)
    };
    byte.store(2, SeqCst);
    fs::write("/proc/self/clear_refs", CLEAR)?;
    let before = shown()?;
    byte.store(3, SeqCst);
    Ok(!before && shown()?)
}

impl SoftDirty {
    /// Takes hold of a process's bits. Changes nothing yet.
    ///
    /// # Errors
    /// [`ArmError::Gone`] if it has ended, [`ArmError::Io`] if the daemon may not.
    pub(super) fn open(process: ProcessId) -> Result<Self, ArmError> {
        let process = Process::open(process).map_err(wrap)?;
        let open = |path| OpenOptions::new().write(true).open(path);
        let clear_refs = process.with_path("clear_refs", open).map_err(wrap)?;
        Ok(Self { process, clear_refs, registered: Mutex::default() })
    }

    /// Arms the whole process: from the return of this call on, a write to any page takes a fault. All bits are gone afterwards: scan first, and
    /// take the marks after it.
    ///
    /// # Errors
    /// [`ScanError::Gone`] if the process has ended.
    pub(super) fn clear(&self) -> Result<(), ScanError> {
        let explain = |error| if is_gone(&error) { ScanError::Gone } else { ScanError::Io(error) };
        (&self.clear_refs).write_all(CLEAR).map_err(explain)?;
        if self.process.alive() { Ok(()) } else { Err(ScanError::Gone) }
    }

    /// Remembers what is mapped in a range.
    ///
    /// # Errors
    /// [`ArmError::NotWatchable`] if a part of it is not mapped.
    pub(super) fn register(&self, range: Range<Hva>) -> Result<(), ArmError> {
        let mapped = self.mapped(&range).map_err(wrap)?;
        if !covers(&mapped, &range) {
            return Err(ArmError::NotWatchable(range.start, range.end));
        }
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.retain(|(known, _)| *known != range);
        registered.push((range, mapped));
        Ok(())
    }

    /// Forgets it.
    pub(super) fn unregister(&self, range: &Range<Hva>) {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| known != range);
    }

    /// Whether what is mapped in a registered range is what was mapped there then.
    ///
    /// # Errors
    /// [`ScanError::NotWatched`] if it isn't.
    pub(super) fn watched(&self, range: &Range<Hva>) -> Result<(), ScanError> {
        let now =
            self.mapped(range).map_err(|e| if is_gone(&e) { ScanError::Gone } else { ScanError::Io(e) })?;
        let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        let same = registered.iter().any(|(known, mapped)| known == range && *mapped == now);
        if same { Ok(()) } else { Err(ScanError::NotWatched) }
    }

    /// Pages of the process that are in memory: what a clearing can cost it faults.
    pub(super) fn resident(&self) -> u64 {
        let statm = self.process.with_path("statm", fs::read_to_string).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
    }

    fn mapped(&self, range: &Range<Hva>) -> io::Result<Vec<Mapped>> {
        let text = self.process.with_path("maps", fs::read)?;
        Ok(mapped(&maps::parse(&text), range))
    }
}

fn wrap(error: io::Error) -> ArmError {
    if is_gone(&error) { ArmError::Gone } else { ArmError::Io(error) }
}

fn covers(mapped: &[Mapped], range: &Range<Hva>) -> bool {
    let mut end = range.start.0;
    for part in mapped {
        if part.range.start != end {
            return false;
        }
        end = part.range.end;
    }
    end == range.end.0
}

fn mapped(vmas: &[maps::Vma], range: &Range<Hva>) -> Vec<Mapped> {
    let mut out: Vec<Mapped> = Vec::new();
    for vma in vmas {
        let clipped = vma.range.start.max(range.start.0)..vma.range.end.min(range.end.0);
        if clipped.is_empty() {
            continue;
        }
        let offset = if vma.anonymous() { 0 } else { vma.offset + (clipped.start - vma.range.start) };
        let part = Mapped { range: clipped, shared: vma.access.shared, file: vma.file, offset };
        match out.last_mut() {
            Some(last) if last.goes_on_in(&part) => last.range.end = part.range.end,
            _ => out.push(part),
        }
    }
    out
}

impl Mapped {
    fn goes_on_in(&self, next: &Self) -> bool {
        let anonymous = self.file.inode == 0 && self.file.device == 0;
        let offset = if anonymous { 0 } else { self.offset + (self.range.end - self.range.start) };
        let same = self.shared == next.shared && self.file == next.file;
        same && self.range.end == next.range.start && offset == next.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, range: Range<u64>) -> Vec<Mapped> {
        mapped(&maps::parse(text.as_bytes()), &(Hva(range.start)..Hva(range.end)))
    }

    #[test]
    fn a_mapping_that_is_split_is_the_same_and_another_file_is_not() {
        let whole = of("10000-50000 rw-s 00001000 00:01 7 /memfd:ram (deleted)\n", 0x20000..0x40000);
        let split =
            "10000-30000 rw-s 00001000 00:01 7 /memfd:ram\n30000-50000 rw-s 00021000 00:01 7 /memfd:ram\n";
        assert_eq!(whole, of(split, 0x20000..0x40000));
        assert!(covers(&whole, &(Hva(0x20000)..Hva(0x40000))));
        for other in [
            "10000-50000 rw-s 00001000 00:01 8 /memfd:ram\n",
            "10000-50000 rw-s 00002000 00:01 7 /memfd:ram\n",
            "10000-50000 rw-p 00001000 00:01 7 /memfd:ram\n",
            "10000-30000 rw-s 00001000 00:01 7 /memfd:ram\n30000-50000 rw-s 00001000 00:01 7 /memfd:ram\n",
            "10000-30000 rw-s 00001000 00:01 7 /memfd:ram\n31000-50000 rw-s 00022000 00:01 7 /memfd:ram\n",
            "",
        ] {
            assert_ne!(whole, of(other, 0x20000..0x40000), "{other}");
        }
    }

    #[test]
    fn only_a_kernel_that_does_not_preempt_itself_will_do() {
        let dynamic = "Linux version 6.1.0-50-amd64 (gcc) #1 SMP PREEMPT_DYNAMIC Debian 6.1.1";
        assert_eq!(judge_preemption(Some("none (voluntary) full \n"), dynamic), Ok(()));
        assert_eq!(judge_preemption(Some("(none) voluntary full \n"), dynamic), Ok(()));
        assert_eq!(judge_preemption(None, "Linux version 6.1.0 (gcc) #1 SMP Debian"), Ok(()));
        let full = judge_preemption(Some("none voluntary (full) \n"), dynamic).unwrap_err();
        assert!(full.contains("preempt=voluntary"), "{full}");
        assert!(judge_preemption(None, dynamic).unwrap_err().contains("debugfs"));
        assert!(judge_preemption(None, "Linux version 6.1.0 (gcc) #1 SMP PREEMPT_RT Debian").is_err());
    }

    #[test]
    fn anonymous_memory_is_one_however_it_is_split() {
        let range = Hva(0x10000)..Hva(0x50000);
        let one = of("10000-50000 rw-p 00000000 00:00 0 \n", 0x10000..0x50000);
        let two = "10000-30000 rw-p 00000000 00:00 0 \n30000-50000 rw-p 00000000 00:00 0 \n";
        assert_eq!(one, of(two, 0x10000..0x50000));
        let gap =
            of("10000-30000 rw-p 00000000 00:00 0 \n40000-50000 rw-p 00000000 00:00 0 \n", 0x10000..0x50000);
        assert!(covers(&one, &range) && !covers(&gap, &range) && !covers(&[], &range));
    }

    #[test]
    fn a_range_is_watched_until_it_is_mapped_anew() {
        let process = SoftDirty::open(crate::watch::process::identify(std::process::id()).unwrap()).unwrap();
        let memory = vec![1_u8; 1 << 20];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE_SIZE as u64);
        let range = Hva(start)..Hva(start + (1 << 19));
        assert!(matches!(process.watched(&range), Err(ScanError::NotWatched)));
        process.register(range.clone()).unwrap();
        process.watched(&range).unwrap();
        process.unregister(&range);
        assert!(process.watched(&range).is_err());
        assert!(matches!(process.register(Hva(0x1000)..Hva(0x2000)), Err(ArmError::NotWatchable(..))));
        assert!(process.resident() > 256);
    }
}
