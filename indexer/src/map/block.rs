//! What is known of 512 pages that differ, as it stands in memory that may outlive the daemon; and the byte that each page has.
//!
//! # The order of changes
//!
//! A daemon can be killed between any two instructions, and the next one finds the block as it is then. Memory keeps what the dead
//! process had stored, in the order of the program: an interrupt leaves no instruction half done and no later one begun. So it is the compiler alone
//! that has to be kept from changing the order, and [`step`] does. For each page:
//!
//! 1. the byte says *stale* (if it did not already),
//! 2. the generation is written, 3. the fingerprint, 4. the byte.
//!
//! Between 1 and 4 the page is stale, so a fingerprint that is half written is never believed. The generation comes before the fingerprint: were it the other way
//! round, a page could have its new fingerprint with the old generation; read again after the restart it would look unchanged, and a reader of "changed since"
//! would never hear of it. With the generation first he is told once too often.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use memdex_wire::{Fingerprint, page::PageState};

use super::{Change, Content, store::step};
use crate::units::Generation;

/// Pages in a chunk: as many as a huge page has.
pub(crate) const CHUNK_PAGES: usize = 512;

/// Kind of content, in the low two bits of a page's byte.
pub(super) const UNKNOWN: u8 = 0;
pub(super) const ABSENT: u8 = 1;
pub(super) const ZERO: u8 = 2;
pub(super) const KNOWN: u8 = 3;
pub(super) const KIND: u8 = 3;
/// Set while the page may have been written since its content was read.
pub(super) const STALE: u8 = 4;
/// Set while direct I/O from before the page was armed may still arrive in it. Never together with `STALE`, nor in an absent page: a request
/// that is under way has its page.
pub(super) const UNSETTLED: u8 = 8;
/// An earlier daemon knew the page, and this one has not looked yet whether that still holds. Never together with `STALE`.
pub(super) const INHERITED: u8 = 16;

/// See the module.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Block {
    /// Generations as distances from `base`, so that they take half the room.
    base: u64,
    len: u64,
    distance: [u32; CHUNK_PAGES],
    fingerprints: [[u8; Fingerprint::LEN]; CHUNK_PAGES],
    pages: [AtomicU8; CHUNK_PAGES],
}

impl Block {
    /// Pages that are all alike and have no fingerprint.
    pub(super) fn alike(page: u8, len: usize, generation: Generation) -> Self {
        Self {
            base: generation.0,
            len: len as u64,
            distance: [0; CHUNK_PAGES],
            fingerprints: [[0; Fingerprint::LEN]; CHUNK_PAGES],
            pages: [const { AtomicU8::new(0) }; CHUNK_PAGES].map(|_| AtomicU8::new(page)),
        }
    }

    /// A copy.
    pub(super) fn copy(&self) -> Self {
        Self {
            base: self.base,
            len: self.len,
            distance: self.distance,
            fingerprints: self.fingerprints,
            pages: std::array::from_fn(|index| AtomicU8::new(self.byte(index))),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn byte(&self, index: usize) -> u8 {
        self.pages[index].load(Relaxed)
    }

    /// What was last read of a page of the kind `KNOWN`.
    pub(super) fn fingerprint(&self, index: usize) -> Fingerprint {
        Fingerprint::new(self.fingerprints[index])
    }

    /// Whether a page is `KNOWN` with this fingerprint, and neither stale nor only inherited.
    pub(super) fn holds(&self, index: usize, fingerprint: &Fingerprint) -> bool {
        self.byte(index) & (KIND | STALE | INHERITED) == KNOWN
            && self.fingerprints[index] == *fingerprint.as_bytes()
    }

    pub(super) fn generation(&self, index: usize) -> Generation {
        Generation(self.base.saturating_add(u64::from(self.distance[index])))
    }

    /// A bit for each page.
    pub(super) fn bits(&self, since: Generation) -> PageBits {
        let mut bits = PageBits::default();
        // Generations before the base are at the base here.
        let since = since.0.saturating_sub(self.base);
        for (word, (pages, distances)) in self.pages.chunks(64).zip(self.distance.chunks(64)).enumerate() {
            for (bit, (page, distance)) in pages.iter().zip(distances).enumerate() {
                let byte = page.load(Relaxed);
                bits.known[word] |= u64::from(byte & KIND == KNOWN) << bit;
                bits.current[word] |= u64::from(byte & (KIND | STALE | INHERITED) == KNOWN) << bit;
                bits.changed[word] |= u64::from(u64::from(*distance) >= since) << bit;
            }
            // Beyond the last page there may be pages of before.
            let there = match self.len().saturating_sub(word * 64) {
                64.. => u64::MAX,
                some => (1 << some) - 1,
            };
            bits.known[word] &= there;
            bits.current[word] &= there;
            bits.changed[word] &= there;
        }
        bits
    }

    /// Changes a page's byte, after all that was changed before.
    pub(super) fn set_byte(&mut self, index: usize, byte: u8) {
        step();
        self.pages[index].store(byte, Relaxed);
        step();
    }

    /// Publishes a page. Returns its byte from before.
    pub(super) fn set(
        &mut self,
        index: usize,
        page: u32,
        content: Content,
        now: u8,
        generation: Generation,
        changes: &mut Vec<Change>,
    ) -> u8 {
        let byte = self.byte(index);
        let before = (byte & KIND == KNOWN).then(|| self.fingerprint(index));
        let after = match content {
            Content::Absent | Content::Zero => None,
            Content::Fingerprint(fingerprint) => Some(fingerprint),
        };
        if byte & KIND != now & KIND || before != after {
            if byte & STALE == 0 {
                self.set_byte(index, byte & KIND | STALE);
            }
            self.set_generation(index, generation);
            if let Some(after) = after {
                // In two steps, so that a test sees what is half written.
                let (first, last) = self.fingerprints[index].split_at_mut(Fingerprint::LEN / 2);
                let (new_first, new_last) = after.as_bytes().split_at(Fingerprint::LEN / 2);
                step();
                first.copy_from_slice(new_first);
                step();
                last.copy_from_slice(new_last);
            }
            if before != after {
                changes.push(Change { page, before, after });
            }
        }
        self.set_byte(index, now);
        byte
    }

    fn set_generation(&mut self, index: usize, generation: Generation) {
        let distance = generation.0.saturating_sub(self.base);
        if let Ok(distance) = u32::try_from(distance) {
            step();
            self.distance[index] = distance;
            return;
        }
        // Four billion generations on: begin to count anew. Older pages then look as if they had changed at the new
        // base, or (in between) later, which makes a reader of "changed since" look at them once too often, never once too few.
        step();
        self.base = generation.0;
        step();
        self.distance = [0; CHUNK_PAGES];
    }

    /// Leaves out the pages from `to` on.
    pub(super) fn truncate(&mut self, to: usize) {
        self.len = self.len.min(to as u64);
    }

    /// Appends `more` unknown pages.
    pub(super) fn grow(&mut self, more: usize) {
        let (from, to) = (self.len(), self.len() + more);
        for page in &self.pages[from..to] {
            page.store(UNKNOWN | STALE, Relaxed);
        }
        self.distance[from..to].fill(0);
        self.len = to as u64;
    }
}

/// The pages of a chunk by what is known of them, a bit for each.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PageBits {
    /// It has a fingerprint, be it stale or not.
    pub(crate) known: [u64; CHUNK_PAGES / 64],
    /// It holds what its fingerprint says, settled or not.
    pub(crate) current: [u64; CHUNK_PAGES / 64],
    /// Its content is of the generation that was asked for, or a later one.
    pub(crate) changed: [u64; CHUNK_PAGES / 64],
}

/// The state as far as any write can be seen.
pub(super) fn held(page: u8) -> PageState {
    match page & (STALE | INHERITED | KIND) {
        ABSENT => PageState::Absent,
        ZERO => PageState::Zero,
        KNOWN => PageState::Current,
        _ => PageState::Stale,
    }
}

/// The state as the API shows it.
pub(super) fn shown(page: u8) -> PageState {
    if page & UNSETTLED == 0 { held(page) } else { PageState::Stale }
}

/// What becomes of the byte of a page that an earlier daemon left. `in_doubt`: direct I/O may have arrived in it after it was read.
pub(super) fn inherit(page: u8, in_doubt: bool) -> u8 {
    let unsettled = if in_doubt { UNSETTLED } else { page & UNSETTLED };
    match page & KIND {
        UNKNOWN => UNKNOWN | STALE,
        kind if page & STALE != 0 => kind | STALE,
        ABSENT => ABSENT | INHERITED,
        kind => kind | INHERITED | unsettled,
    }
}

/// What becomes of the byte of a page that was, or may have been, written.
pub(super) fn stale(page: u8) -> u8 {
    page & KIND | STALE
}
