//! Where a map lives so that it outlives the daemon: one file for each VM in a folder on tmpfs, mapped shared.
//!
//! Owns the layout of the file and the room in it. What a chunk and a block mean is [`super`]'s; whether what is found may be believed is
//! the tracker's to find out.
//!
//! # The file
//!
//! | At | What |
//! |---|---|
//! | 0 | the [header](Head): what it is, whose, and whether it is whole |
//! | 64 KiB | a table with one word for each chunk: all its pages are alike, or the number of the slot with its block |
//! | after it | a half word for each chunk: when something was last published in it as settled (see `watch/unsettled.rs`) |
//! | after it | slots for blocks, in segments that are mapped one by one as they are needed |
//!
//! The tables have room for the largest VM there can be; the file is sparse. Room is allocated (fallocate(2)) before it is touched, so a full tmpfs is an error here
//! and no SIGBUS. Then, or without a folder, blocks live on the heap: all is as before, only that the next daemon reads the VM anew.
//!
//! # On kill -9
//!
//! The kernel can end the daemon between any two instructions, and the file is then what had been stored up to there, in the order of the program. (The host
//! going down is no matter: the guests go with it, and the file is on tmpfs.) So every change is a sequence of [`step`]s after each of which the file is good:
//!
//! - *a page becomes stale*: one byte.
//! - *a page is published*: see [`super::block`]; what is half done is stale.
//! - *a block that a snapshot holds is changed*: it is copied into a free slot, then the table names the copy, then that is changed. A slot is given back when nobody
//!   holds it any more, which is after the table has ceased to name it. Slots that no word names are free: nothing is lost by dying in between.
//! - *a chunk becomes alike, or ceases to be*: one word of the table.
//! - *pages are numbered anew*: the header's sequence is odd meanwhile, and then the file is not believed at all.
//!
//! The generation is written last. The next daemon begins after the highest one that it finds anywhere, so nothing that a reader has been told is taken back.
//!
//! # Who may use it
//!
//! The file is locked (flock(2)) by whoever has it open, is mode 0600 and belongs to the daemon's user; anything else is not believed. It is found by pid and start time, and
//! its header names the boot. Nothing in it is trusted to be in bounds.

mod area;
mod folder;
mod head;
mod slot;

use std::{
    fs::File,
    path::PathBuf,
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use rustix::fs::FallocateFlags;

use super::block::{Block, CHUNK_PAGES};
use crate::units::MAX_PAGES;
use area::Area;
pub use folder::MapFolder;
pub(crate) use head::DirectIo;
pub(in crate::map) use head::LeftChunk;
pub use head::{Left, Owner};
pub(in crate::map) use slot::Slot;

/// Bytes of the header.
const HEAD: usize = 64 << 10;
/// Most chunks of a VM.
const CHUNKS: usize = MAX_PAGES as usize / CHUNK_PAGES;
/// Where the table begins, the times, and the slots.
const TABLE: usize = HEAD;
const TIMES: usize = TABLE + CHUNKS * 8;
const SLOTS: usize = TIMES + CHUNKS * 4;
/// Slots that are mapped together, and the bytes they take: whole pages of memory.
const SEGMENT: u32 = 128;
const SEGMENT_BYTES: usize = (SEGMENT as usize * size_of::<Block>()).next_multiple_of(PAGE);
const PAGE: usize = 4096;
/// Free slots whose memory is kept for the next one who needs it.
const KEPT: usize = 64;

/// A point in the order of changes: what was stored before stays before what is stored after.
#[inline(always)]
pub(super) fn step() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(test)]
    watching::step();
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    file: File,
    head: Area,
    tables: Area,
    /// Chunks whose places in the tables have memory behind them.
    reserved: AtomicUsize,
    /// Locked for microseconds, when a block is made or given back.
    room: Mutex<Room>,
    /// The file has been removed: its VM has ended, or the tmpfs was full, so that the map is not all in here.
    removed: AtomicBool,
    /// No map is written here: not yet, or not any more. What the table names stays where it is, for the next daemon.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Room {
    segments: Vec<Area>,
    /// Free slots with memory behind them, and without.
    ready: Vec<u32>,
    bare: Vec<u32>,
}

impl Store {
    fn new(path: PathBuf, file: File, head: Area, tables: Area) -> Self {
        Self {
            path,
            file,
            head,
            tables,
            reserved: AtomicUsize::new(0),
            room: Mutex::default(),
            removed: AtomicBool::new(false),
            // Whoever only looks at what was left must not give its blocks back.
            closed: AtomicBool::new(true),
        }
    }

    /// Whether the next daemon will find the map here.
    pub(crate) fn lasts(&self) -> bool {
        !self.removed.load(Relaxed)
    }

    /// Removes the file: nothing is left to the next daemon.
    pub(crate) fn remove(&self) {
        if !self.removed.swap(true, Relaxed) {
            self.disown();
            folder::remove(&self.path);
        }
    }

    /// From now on a map is written here.
    pub(super) fn open(&self) {
        self.closed.store(false, Relaxed);
    }

    /// The map is not written any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Room for a block; `None` if there is no more.
    fn take(&self) -> Option<(u32, NonNull<u8>)> {
        if !self.lasts() {
            return None;
        }
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = room.ready.pop() {
            return Some((index, room.place(index)));
        }
        match self.furnish(&mut room) {
            Ok(index) => Some((index, room.place(index))),
            Err(error) => {
                drop(room);
                self.give_up(&error);
                None
            }
        }
    }

    /// A slot with memory behind it.
    fn furnish(&self, room: &mut Room) -> std::io::Result<u32> {
        if room.bare.is_empty() {
            self.add_segment(room)?;
        }
        let index = *room.bare.last().ok_or(std::io::ErrorKind::OutOfMemory)?;
        let (offset, len) = extent(index);
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len)?;
        room.bare.pop();
        Ok(index)
    }

    fn add_segment(&self, room: &mut Room) -> std::io::Result<()> {
        let first = u32::try_from(room.segments.len()).map_err(std::io::Error::other)? * SEGMENT;
        let offset = (SLOTS + room.segments.len() * SEGMENT_BYTES) as u64;
        let end = offset + SEGMENT_BYTES as u64;
        if self.file.metadata()?.len() < end {
            self.file.set_len(end)?;
        }
        room.segments.push(Area::map(&self.file, offset, SEGMENT_BYTES)?);
        // The lowest one is taken first.
        room.bare.extend((first..first + SEGMENT).rev());
        Ok(())
    }

    /// A block is needed no more. No word of the table names it, unless no map is written here.
    fn give_back(&self, index: u32) {
        if self.closed.load(Relaxed) || !self.lasts() {
            return;
        }
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.ready.len() < KEPT {
            room.ready.push(index);
            return;
        }
        // Only whole pages of memory go; those at either end are shared with neighbours.
        let (offset, len) = extent(index);
        let (from, to) = (offset.next_multiple_of(PAGE as u64), (offset + len) / PAGE as u64 * PAGE as u64);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(&self.file, flags, from, to - from);
        room.bare.push(index);
    }

    /// From now on blocks live on the heap, and the next daemon finds nothing.
    fn give_up(&self, error: &std::io::Error) {
        if self.lasts() {
            self.remove();
            tracing::warn!(
                path = %self.path.display(), %error,
                "no room for a VM's map in the runtime folder: it stays in the daemon's memory, and the VM will be read anew after a restart"
            );
        }
    }

    /// The word of a chunk: all pages alike.
    pub(super) fn set_alike(&self, chunk: usize, alike: Alike) {
        self.set_word(chunk, alike.pack());
    }

    /// The word of a chunk: the slot of its block. A block on the heap has none; then the file has been given up.
    pub(super) fn set_slot(&self, chunk: usize, slot: &Slot) {
        if let Some(index) = slot.index() {
            self.set_word(chunk, EACH | u64::from(index));
        }
    }

    fn set_word(&self, chunk: usize, word: u64) {
        if chunk < self.reserved.load(Relaxed) {
            step();
            self.tables.word(chunk * 8).store(word, Relaxed);
            step();
        }
    }

    /// Notes when something was published in a chunk as settled: seconds of the monotonic clock.
    pub(super) fn set_time(&self, chunk: usize, seconds: u32) {
        if chunk < self.reserved.load(Relaxed) {
            self.tables.half(TIMES - TABLE + chunk * 4).store(seconds, Relaxed);
        }
    }

    fn time(&self, chunk: usize) -> u32 {
        self.tables.half(TIMES - TABLE + chunk * 4).load(Relaxed)
    }

    /// Allocates the tables of so many chunks.
    pub(super) fn reserve(&self, chunks: usize) {
        let table = |at: usize, bytes: usize| {
            let (offset, len) = (at as u64, bytes.max(1) as u64);
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len)
        };
        match table(TABLE, chunks * 8).and_then(|()| table(TIMES, chunks * 4)) {
            Ok(()) => self.reserved.store(chunks, Relaxed),
            Err(error) => self.give_up(&error.into()),
        }
    }
}

impl Room {
    fn place(&self, index: u32) -> NonNull<u8> {
        let segment = &self.segments[(index / SEGMENT) as usize];
        segment.place((index % SEGMENT) as usize * size_of::<Block>(), size_of::<Block>())
    }
}

/// Where a slot stands in the file: offset and length.
fn extent(index: u32) -> (u64, u64) {
    let segment = SLOTS + (index / SEGMENT) as usize * SEGMENT_BYTES;
    ((segment + (index % SEGMENT) as usize * size_of::<Block>()) as u64, size_of::<Block>() as u64)
}

/// Set in the word of a chunk that has a block.
const EACH: u64 = 1 << 63;

/// A chunk whose pages are all alike, as a word: generation (46 bits: milliseconds for two thousand years), byte (6 bits), number of pages (10 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alike {
    pub(super) page: u8,
    pub(super) len: u16,
    pub(super) generation: u64,
}

impl Alike {
    fn pack(self) -> u64 {
        (self.generation & ((1 << 46) - 1)) << 16
            | u64::from(self.page & 63) << 10
            | u64::from(self.len & 1023)
    }

    fn unpack(word: u64) -> Self {
        Self {
            page: (word >> 10 & 63) as u8,
            len: (word & 1023) as u16,
            generation: word >> 16 & ((1 << 46) - 1),
        }
    }
}

/// Lets a test see the file after every step.
#[cfg(test)]
pub(super) mod watching {
    use std::cell::RefCell;

    type Watcher = Box<dyn FnMut()>;

    thread_local! {
        static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
    }

    pub(in crate::map) fn step() {
        WATCHER.with(|watcher| {
            // Not while it is looking itself.
            if let Ok(mut watcher) = watcher.try_borrow_mut()
                && let Some(watcher) = watcher.as_mut()
            {
                watcher();
            }
        });
    }

    /// Calls `each` at every step that `during` makes on this thread.
    pub(in crate::map) fn every_step<R>(each: impl FnMut() + 'static, during: impl FnOnce() -> R) -> R {
        WATCHER.with(|watcher| *watcher.borrow_mut() = Some(Box::new(each)));
        let result = during();
        WATCHER.with(|watcher| *watcher.borrow_mut() = None);
        result
    }
}

#[cfg(test)]
mod tests;
