//! The header of a map's file: what it is, whose, and whether it is whole.
//!
//! Owns the fields and the judgement of what a dead daemon left. Whether the VM is still the one described, its tracker finds out.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};

use super::{Alike, CHUNKS, EACH, HEAD, SEGMENT, SEGMENT_BYTES, SLOTS, Slot, Store, extent, step};
use crate::{
    map::block::{Block, CHUNK_PAGES, KIND, KNOWN},
    units::Generation,
    vm::descriptor::{ProcessId, Region},
    watch::userfault::Token,
};

/// What the file begins with, and which layout follows. Whoever changes the layout, the meaning of a byte or how a fingerprint is made counts on.
const MAGIC: u64 = u64::from_le_bytes(*b"memdex\0m");
const FORMAT: u64 = 1;

/// Offsets of the fields, in bytes.
const AT_MAGIC: usize = 0;
const AT_FORMAT: usize = 8;
/// Odd while the layout or the owner is being changed.
const AT_SEQUENCE: usize = 16;
const AT_GENERATION: usize = 24;
const AT_LAYOUT_SINCE: usize = 32;
const AT_PAGES: usize = 40;
/// 1 if all that is shown as known was watched without a doubt.
const AT_TRUSTED: usize = 48;
/// 1 if direct I/O was possible.
const AT_DIRECT: usize = 56;
/// When the last look for direct I/O began that found none: seconds of the monotonic clock, plus one; 0: never.
const AT_NONE_LOOK: usize = 64;
/// Length and checksum (the first eight bytes of BLAKE3) of the owner, and its text.
const AT_LENGTH: usize = 72;
const AT_CHECKSUM: usize = 80;
const AT_OWNER: usize = 128;

/// How much later than now a generation can be at most: it counts up by less than one a millisecond.
const GENERATION_AHEAD: u64 = 86_400_000;

/// Whose map it is, and what has to be as it was for it to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// What the VM is called.
    pub(crate) name: String,
    boot: String,
    pid: u32,
    start_time: u64,
    /// The userfaultfd that has armed the pages.
    pub(crate) token: Option<Token>,
    /// The regions in the order of their pages: all that discovery knows of each, in words, and its pages.
    regions: Vec<(String, u32)>,
}

impl Owner {
    pub(crate) fn new(name: &str, process: ProcessId, token: Option<Token>, regions: &[Region]) -> Self {
        Self {
            name: name.to_owned(),
            boot: super::folder::boot(),
            pid: process.pid,
            start_time: process.start_time,
            token,
            regions: regions.iter().map(|region| (format!("{region:?}"), region.pages() as u32)).collect(),
        }
    }

    /// Number of regions.
    pub(crate) fn regions(&self) -> usize {
        self.regions.len()
    }

    /// How many of the first regions are the same.
    pub(crate) fn same_regions(&self, other: &Self) -> usize {
        self.regions.iter().zip(&other.regions).take_while(|(ours, theirs)| ours == theirs).count()
    }
}

/// What was known of direct I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirectIo {
    /// A request could be under way.
    pub(crate) possible: bool,
    /// When the last look that found no file for it began, in seconds of the monotonic clock.
    pub(crate) none_look: Option<u32>,
}

/// A map that an earlier daemon left, whole and well formed. Nothing is known yet of the VM's being what it was.
#[derive(Debug)]
pub struct Left {
    pub(crate) store: Arc<Store>,
    pub(crate) owner: Owner,
    pub(crate) trusted: bool,
    pub(crate) direct_io: DirectIo,
    pub(crate) generation: Generation,
    pub(crate) layout_since: Generation,
    chunks: Vec<LeftChunk>,
}

/// One chunk of it.
#[derive(Debug)]
pub(in crate::map) enum LeftChunk {
    Alike(Alike),
    Each(Slot),
}

impl Left {
    /// The chunks, each with the time at which something was last published in it as settled.
    pub(in crate::map) fn into_chunks(self) -> (Arc<Store>, Vec<(LeftChunk, u32)>) {
        let times: Vec<u32> = (0..self.chunks.len()).map(|chunk| self.store.time(chunk)).collect();
        (self.store, self.chunks.into_iter().zip(times).collect())
    }
}

impl Store {
    fn field(&self, at: usize) -> u64 {
        self.head.word(at).load(Relaxed)
    }

    fn set_field(&self, at: usize, value: u64) {
        step();
        self.head.word(at).store(value, Relaxed);
        step();
    }

    /// Makes the header of a new file. It is not believed before [`Store::seal`].
    pub(super) fn begin(&self) {
        self.set_field(AT_SEQUENCE, 1);
        self.set_field(AT_FORMAT, FORMAT);
        self.set_field(AT_MAGIC, MAGIC);
    }

    /// Whoever comes after shall not believe this file.
    pub(super) fn disown(&self) {
        self.set_field(AT_MAGIC, 0);
    }

    /// The layout is going to change: until [`Store::seal`] nothing in here is to be believed.
    pub(in crate::map) fn unseal(&self) {
        self.set_field(AT_SEQUENCE, self.field(AT_SEQUENCE) | 1);
    }

    /// The map is whole, and whose it is.
    pub(in crate::map) fn seal(&self, owner: &Owner, pages: u32) {
        self.unseal();
        let text = serde_json::to_vec(owner).unwrap_or_default();
        if text.is_empty() || text.len() > HEAD - AT_OWNER {
            // Thousands of regions: such a map is not handed on.
            return;
        }
        self.set_field(AT_PAGES, u64::from(pages));
        self.set_field(AT_LENGTH, text.len() as u64);
        self.set_field(AT_CHECKSUM, checksum(&text));
        for (index, word) in text.chunks(8).enumerate() {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            self.head.word(AT_OWNER + index * 8).store(u64::from_le_bytes(bytes), Relaxed);
        }
        self.set_field(AT_SEQUENCE, self.field(AT_SEQUENCE) + 1);
    }

    /// Counts the changes: after what they are.
    pub(in crate::map) fn set_generation(&self, generation: Generation) {
        self.set_field(AT_GENERATION, generation.0);
    }

    pub(in crate::map) fn set_layout_since(&self, generation: Generation) {
        self.set_field(AT_LAYOUT_SINCE, generation.0);
    }

    /// Whether what is shown as known was watched without a doubt.
    pub(crate) fn set_trusted(&self, trusted: bool) {
        if self.field(AT_TRUSTED) != u64::from(trusted) {
            self.set_field(AT_TRUSTED, u64::from(trusted));
        }
    }

    /// What is known of direct I/O.
    pub(crate) fn set_direct_io(&self, direct_io: DirectIo) {
        self.head.word(AT_DIRECT).store(u64::from(direct_io.possible), Relaxed);
        let look = direct_io.none_look.map_or(0, |seconds| u64::from(seconds) + 1);
        self.head.word(AT_NONE_LOOK).store(look, Relaxed);
    }

    /// What an earlier daemon left in this file, which is of `process`; else why it is of no use.
    pub(super) fn judge(self: &Arc<Self>, process: ProcessId) -> Result<Left, String> {
        if self.field(AT_MAGIC) != MAGIC {
            return Err("it is no map, or one that its daemon gave up".to_owned());
        }
        let format = self.field(AT_FORMAT);
        if format != FORMAT {
            return Err(format!("it is of another version (format {format}, this one writes {FORMAT})"));
        }
        if !self.field(AT_SEQUENCE).is_multiple_of(2) {
            return Err("its daemon ended while the layout was changing".to_owned());
        }
        let owner = self.owner().ok_or("its header is damaged")?;
        if owner.boot != super::folder::boot()
            || (owner.pid, owner.start_time) != (process.pid, process.start_time)
        {
            return Err("it is of another process or from another boot".to_owned());
        }
        let pages = u32::try_from(self.field(AT_PAGES)).map_err(|_| "its header is damaged")?;
        let counted: u64 = owner.regions.iter().map(|(_, pages)| u64::from(*pages)).sum();
        if u64::from(pages) != counted || (pages as usize).div_ceil(CHUNK_PAGES) > CHUNKS {
            return Err("its header is damaged".to_owned());
        }
        let chunks = self.chunks(pages as usize)?;
        let mut generation = self.field(AT_GENERATION);
        for chunk in &chunks {
            generation = generation.max(match chunk {
                LeftChunk::Alike(alike) => alike.generation,
                LeftChunk::Each(block) => {
                    (0..block.len()).map(|index| block.generation(index).0).max().unwrap_or_default()
                }
            });
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let layout_since = self.field(AT_LAYOUT_SINCE);
        if generation > now.as_millis() as u64 + GENERATION_AHEAD || layout_since > generation {
            return Err("its generations are damaged, or the clock was set back".to_owned());
        }
        Ok(Left {
            store: Arc::clone(self),
            owner,
            trusted: self.field(AT_TRUSTED) == 1,
            direct_io: DirectIo {
                possible: self.field(AT_DIRECT) != 0,
                none_look: self.field(AT_NONE_LOOK).checked_sub(1).map(|seconds| seconds as u32),
            },
            generation: Generation(generation),
            layout_since: Generation(layout_since),
            chunks,
        })
    }

    fn owner(&self) -> Option<Owner> {
        let length =
            usize::try_from(self.field(AT_LENGTH)).ok().filter(|length| *length <= HEAD - AT_OWNER)?;
        let words = (0..length.div_ceil(8)).map(|index| self.field(AT_OWNER + index * 8).to_le_bytes());
        let text: Vec<u8> = words.flatten().take(length).collect();
        if checksum(&text) != self.field(AT_CHECKSUM) {
            return None;
        }
        serde_json::from_slice(&text).ok()
    }

    /// The chunks of so many pages, all in bounds and no block in two of them.
    fn chunks(self: &Arc<Self>, pages: usize) -> Result<Vec<LeftChunk>, String> {
        let damaged = || "its table is damaged".to_owned();
        let count = pages.div_ceil(CHUNK_PAGES);
        let io = |error: std::io::Error| format!("it cannot be read: {error}");
        self.reserve(count);
        if !self.lasts() {
            return Err("the runtime folder has no room".to_owned());
        }
        let mut room = self.room.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let segments =
            (self.file.metadata().map_err(io)?.len() as usize).saturating_sub(SLOTS) / SEGMENT_BYTES;
        // Snapshots hold blocks beyond those of the map, but not for ever.
        if segments * SEGMENT as usize > (count + SEGMENT as usize) * 8 {
            return Err("it is larger than it can be".to_owned());
        }
        for _ in 0..segments {
            self.add_segment(&mut room).map_err(io)?;
        }
        let mut used = HashSet::new();
        let mut chunks = Vec::with_capacity(count);
        let mut found = Ok(());
        for chunk in 0..count {
            let len = (pages - chunk * CHUNK_PAGES).min(CHUNK_PAGES);
            let word = self.tables.word(chunk * 8).load(Relaxed);
            if word & EACH == 0 {
                let alike = Alike::unpack(word);
                if usize::from(alike.len) != len || alike.page & KIND == KNOWN {
                    found = Err(damaged());
                    break;
                }
                chunks.push(LeftChunk::Alike(alike));
                continue;
            }
            let index = u32::try_from(word & !EACH).unwrap_or(u32::MAX);
            if index / SEGMENT >= segments as u32 || !used.insert(index) {
                found = Err(damaged());
                break;
            }
            // In a damaged file it may be a hole: reading that must not need memory which is not there.
            let (offset, bytes) = extent(index);
            if let Err(error) =
                rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), offset, bytes)
            {
                found = Err(io(error.into()));
                break;
            }
            #[expect(unsafe_code, reason = "who owns a slot is decided here")]
            // SAFETY: the number is in bounds, and no other chunk has it; nobody else has slots of this store: it has just been opened, and the file is
            // locked.
            let block = unsafe { Slot::adopt(self, index, room.place(index)) };
            let fits = block.len() == len;
            chunks.push(LeftChunk::Each(block));
            if !fits {
                found = Err(damaged());
                break;
            }
        }
        room.bare.retain(|index| !used.contains(index));
        // Dropping the blocks of a damaged one takes the lock.
        drop(room);
        found.map(|()| chunks)
    }
}

fn checksum(text: &[u8]) -> u64 {
    let hash = blake3::hash(text);
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has more than eight bytes"))
}

const _: () = assert!(size_of::<Block>().is_multiple_of(8), "blocks stand one after another");
