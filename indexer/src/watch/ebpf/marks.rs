//! The marks of one VM, and the rules by which none is lost.
//!
//! Owns taking and looking. Never decides what a mark means for a page.
//!
//! # On marks, and why none is lost
//!
//! Who writes: programs, on any number of CPUs, in the middle of a page fault or a system call. They store the byte 1 into the *mark* of the
//! page and then the byte 1 into the *summary* of its 512 pages. They never read a mark, never write 0, and know nothing of each other.
//! Who clears: the daemon, one thread at a time (`&mut self`). It swaps the summary byte with 0 and, if it was set, *then* swaps the words of
//! the 512 marks with 0.
//!
//! 1. *Two stores cannot undo each other.* Every mark is a byte of its own, and a byte store leaves its neighbours alone, so no program
//!    needs a read-modify-write (the BPF target has none of these in `core`). Written and discarded pages have bytes of their own too.
//!    The daemon's swap of a whole word is atomic: a byte stored before it is in what the swap returns, a byte stored after it stays.
//! 2. *A mark is never left behind under a cleared summary.* Let a program store mark M, then summary S. x86 keeps stores in order
//!    (and the compiler does, both being volatile), so whoever sees S=1 sees M=1. Consider the daemon's swap of S:
//!    - it comes after the program's store to S: it returns 1, the daemon goes on to the marks, and its swap of M (the swap of S, a locked
//!      instruction, is a full fence, so it cannot have happened earlier) finds M=1: the page is taken now;
//!    - it comes before the program's store to S: S is 1 when the daemon is done. The next call looks at the 512 pages and takes M, unless
//!      this call has already taken it, in which case the next finds nothing there, which is harmless.
//!
//!    Were the daemon to clear the summary *after* the marks, a mark stored in between would be lost. Were the program to store the summary
//!    first, likewise.
//! 3. *A mark comes before what it tells of.* The hooks run before the fault is resolved and before the system call does its work. So a page
//!    with no mark, at some moment, has not been written or discarded since its marks were last taken, up to that moment; and a taken mark does
//!    not mean that the write has happened *already*. The caller has to treat a taken page as being written until it has seen the page written
//!    (page table), or, for a discard, until no discarding call is in flight ([`Marks::discards_quiescent`]).
//! 4. *An event that cannot be pinned to a page is not dropped.* It sets a flag that [`Marks::take`] reports: any page may have been
//!    written (or discarded), look at all of them.
//! 5. *A change of layout loses nothing.* A VM whose regions or memslots change gets a new map by a new call of `track`. The kernel answers the
//!    update of a map of maps only when no program can still be using the old entry. So the caller tracks anew first, then takes from the
//!    old `Marks` one last time and drops it.
//!
//! # On calls in flight
//!
//! A discarding call counts itself (`entered`) before it sets its marks, and counts itself out (`exited`) after its work is done. The daemon reads
//! `exited` first and `entered` second. Let T be a moment between the two reads. Both only grow and `exited` never passes `entered`, so
//! what was read of `exited` is at most its value at T, which is at most that of `entered` at T, which is at most what was read. If the two ends
//! are equal all are: no call was in flight at T. And a call whose marks the daemon has taken had counted itself before it set them, so
//! it cannot be missing from the count.
//!
//! Counting is per process and survives changes of layout. A call that began before the process was tracked is not in `entered`; the program at
//! its exit finds no note of its beginning and, instead of counting, says that anything may have been discarded.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering, fence},
    },
};

use indexer_common::marks::{CHUNK, DOUBT_HVA, Header};

use super::{
    registry::Registry,
    shared::{Flag, Mapping},
};

/// The marks of one tracked VM. Dropping it ends the tracking, unless the process has been tracked anew since.
#[derive(Debug)]
pub struct Marks {
    pub(super) registry: Arc<Registry>,
    pub(super) pid: u32,
    /// Which of the calls of `track` for this process made it.
    pub(super) serial: u64,
    pub(super) header: Header,
    pub(super) mapping: Mapping,
}

/// What [`Marks::take`] could not say with page numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Taken {
    /// A write could not be mapped to a page: every page has to be looked at.
    pub overflowed: bool,
    /// A discard could not be mapped to pages: every page may have been discarded.
    pub discards_overflowed: bool,
    /// KVM's memslots are not those of the layout any more: find out the new ones and track anew. Until then
    /// every write of the guest also sets `overflowed`.
    pub layout_stale: bool,
    /// Another process is mapping one of the VM's RAM files writable, or did since: its writes will leave no mark.
    pub foreign_mapping: bool,
    /// The VMM has emptied KVM's dirty ring: what was marked by a push before is being protected by KVM again.
    pub ring_reset: bool,
}

impl Marks {
    /// Takes, that is clears, all marks since the last call and appends the pages as runs of VM page numbers.
    pub fn take(&mut self, written: &mut Vec<Range<u32>>, discarded: &mut Vec<Range<u32>>) -> Taken {
        let taken = Taken {
            overflowed: self.mapping.take_flag(Flag::Overflowed),
            discards_overflowed: self.mapping.take_flag(Flag::DiscardsOverflowed),
            layout_stale: self.mapping.take_flag(Flag::LayoutStale),
            foreign_mapping: self.mapping.take_flag(Flag::ForeignMapping),
            ring_reset: self.mapping.take_flag(Flag::RingReset),
        };
        let pages = self.header.pages;
        self.each_chunk(self.header.written_summary, |chunk| {
            self.take_marks(self.header.written_marks, chunk, written);
        });
        let chunks = self.mapping.bytes(self.header.discarded_chunks, self.chunks());
        self.each_chunk(self.header.discarded_summary, |chunk| {
            if chunks[chunk as usize].swap(0, Ordering::SeqCst) == 0 {
                self.take_marks(self.header.discarded_marks, chunk, discarded);
            } else {
                self.take_marks(self.header.discarded_marks, chunk, &mut Vec::new());
                append(discarded, chunk * CHUNK..((chunk + 1) * CHUNK).min(pages));
            }
        });
        taken
    }

    /// Looks without clearing: could any page of the range have been written or discarded since its marks were last taken?
    ///
    /// What the caller read before the call cannot be newer than a mark the call does not see. A write that could not be mapped to
    /// a page is not looked for: it would be said of every page, and a guest that makes such writes all the time would never be known.
    /// The next [`Marks::take`] tells of it, and then the page table has to.
    #[must_use]
    pub fn any(&self, pages: Range<u32>) -> bool {
        fence(Ordering::SeqCst);
        let pages = pages.start..pages.end.min(self.header.pages);
        if pages.is_empty() {
            return false;
        }
        let count = self.header.pages as usize;
        let set = |element: u32, len: usize, range: Range<u32>| {
            let bytes = self.mapping.bytes(element, len);
            bytes[range.start as usize..range.end as usize]
                .iter()
                .any(|byte| byte.load(Ordering::Acquire) != 0)
        };
        let chunks = pages.start / CHUNK..(pages.end - 1) / CHUNK + 1;
        self.mapping.is_set(Flag::DiscardsOverflowed)
            || set(self.header.written_marks, count, pages.clone())
            || set(self.header.discarded_marks, count, pages)
            || set(self.header.discarded_chunks, self.chunks(), chunks)
    }

    /// True if at some moment during the call no system call that discards memory of this VM was in flight.
    ///
    /// False if that cannot be told.
    #[must_use]
    pub fn discards_quiescent(&self) -> bool {
        // Two look-ups, and in this order: see "On calls in flight".
        let exited = self.registry.calls(self.pid).map(|calls| calls.exited);
        let entered = self.registry.calls(self.pid).map(|calls| calls.entered);
        exited.is_some() && exited == entered
    }

    /// Whether every address of guest memory leads to its page: otherwise a write may leave only the flag that any page may have been written.
    #[must_use]
    pub fn know_all_addresses(&self) -> bool {
        self.header.doubts & DOUBT_HVA == 0
    }

    fn chunks(&self) -> usize {
        self.header.pages.div_ceil(CHUNK) as usize
    }

    /// Clears a summary and calls `f` for each chunk that was set in it. Looks at eight chunks (16 MiB of guest memory) at once, so an idle
    /// guest of a terabyte costs 64 KiB of reading.
    fn each_chunk(&self, summary: u32, mut f: impl FnMut(u32)) {
        let bytes: &[AtomicU8] = self.mapping.bytes(summary, self.chunks());
        let words: &[AtomicU64] = self.mapping.words(summary, self.chunks());
        for (index, word) in words.iter().enumerate() {
            // A byte that is stored just after this look stays for the next call.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let first = index * 8;
            for (chunk, byte) in bytes.iter().enumerate().skip(first).take(8) {
                if byte.swap(0, Ordering::SeqCst) != 0 {
                    f(chunk as u32);
                }
            }
        }
    }

    /// Clears the marks of a chunk and appends the pages that had one.
    fn take_marks(&self, marks: u32, chunk: u32, out: &mut Vec<Range<u32>>) {
        let first = chunk * CHUNK;
        let words = self.mapping.words(marks, self.header.pages as usize);
        let words = words.iter().enumerate().skip(first as usize / 8).take(CHUNK as usize / 8);
        for (index, word) in words {
            // Not a swap at once: most words are 0, and reading does not take the cache line from the program that writes to it.
            if word.load(Ordering::Acquire) == 0 {
                continue;
            }
            let set = word.swap(0, Ordering::SeqCst).to_le_bytes();
            for (byte, mark) in set.into_iter().enumerate() {
                let page = index as u32 * 8 + byte as u32;
                if mark != 0 && page < self.header.pages {
                    append(out, page..page + 1);
                }
            }
        }
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.registry.forget(self.pid, self.serial);
    }
}

/// Appends a run, joined with the last one if it goes on where that ends.
fn append(runs: &mut Vec<Range<u32>>, run: Range<u32>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}
