//! 512 pages of a map.

use std::{ops::Range, sync::Arc};

use memdex_wire::{Fingerprint, page::PageState};

use super::{Change, counts::Counts};
use crate::units::Generation;

/// Pages in a chunk: as many as a huge page has.
pub(super) const CHUNK_PAGES: usize = 512;

/// What a page held when it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing: the page was never populated, or has been discarded. Reads as zero.
    Absent,
    /// Zeros.
    Zero,
    /// Other bytes.
    Fingerprint(Fingerprint),
}

/// What is known of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageView {
    /// The state as the API shows it: an unsettled page is stale.
    pub state: PageState,
    /// The state as far as any write can be seen: `Stale` only if the page has been written since it was read, or was not read yet. Other
    /// than `state` for unsettled pages alone.
    pub held: PageState,
    /// The fingerprint of a current page, the last known one of a stale page.
    pub fingerprint: Option<Fingerprint>,
    /// Generation in which the content last changed.
    pub generation: Generation,
}

/// Kind of content, in the low two bits of a page's byte.
const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const ZERO: u8 = 2;
const KNOWN: u8 = 3;
const KIND: u8 = 3;
/// Set while the page may have been written since its content was read.
const STALE: u8 = 4;
/// Set while direct I/O from before the page was armed may still arrive in it. Never together with `STALE`, nor in an absent page: a request
/// that is under way has its page.
const UNSETTLED: u8 = 8;

#[derive(Debug, Clone)]
pub(super) enum Chunk {
    /// Every page is alike, and none has a fingerprint.
    Alike { page: u8, len: u16, generation: Generation },
    /// Pages differ.
    Each(Arc<Block>),
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    len: u16,
    pages: [u8; CHUNK_PAGES],
    /// Generations as distances from `base`, so that they take half the room.
    base: Generation,
    distance: [u32; CHUNK_PAGES],
    fingerprints: [Fingerprint; CHUNK_PAGES],
}

impl Chunk {
    pub(super) fn unknown(len: usize, generation: Generation) -> Self {
        Self::Alike { page: UNKNOWN | STALE, len: len as u16, generation }
    }

    pub(super) fn len(&self) -> usize {
        usize::from(match self {
            Self::Alike { len, .. } => *len,
            Self::Each(block) => block.len,
        })
    }

    pub(super) fn page(&self, index: usize) -> PageView {
        let (page, fingerprint, generation) = match self {
            Self::Alike { page, generation, .. } => (*page, None, *generation),
            Self::Each(block) => {
                let page = block.pages[index];
                let known = (page & KIND == KNOWN).then(|| block.fingerprints[index]);
                (page, known, block.generation(index))
            }
        };
        PageView { state: shown(page), held: held(page), fingerprint, generation }
    }

    /// The byte of a page: cheaper than [`Chunk::page`].
    fn byte(&self, index: usize) -> u8 {
        match self {
            Self::Alike { page, .. } => *page,
            Self::Each(block) => block.pages[index],
        }
    }

    /// The one state (as held) of all pages, if there is one without looking at each.
    pub(super) fn uniform_state(&self) -> Option<PageState> {
        match self {
            Self::Alike { page, .. } => Some(held(*page)),
            Self::Each(_) => None,
        }
    }

    /// The state as held.
    pub(super) fn state(&self, index: usize) -> PageState {
        held(self.byte(index))
    }

    /// Whether direct I/O from before may still arrive in the page.
    pub(super) fn unsettled(&self, index: usize) -> bool {
        self.byte(index) & UNSETTLED != 0
    }

    /// Counts into `newly` the pages that were not stale, by what they were.
    pub(super) fn mark_stale(&mut self, pages: Range<usize>, newly: &mut Counts) {
        if let Self::Alike { page, len, .. } = self {
            if *page & STALE != 0 {
                return;
            }
            if pages.len() == usize::from(*len) {
                newly.add(*page, u64::from(*len));
                *page = *page & !UNSETTLED | STALE;
                return;
            }
        }
        // A look first: marking what is stale already must not copy a block that a snapshot holds.
        if pages.clone().all(|index| self.byte(index) & STALE != 0) {
            return;
        }
        let block = self.block();
        for page in &mut block.pages[pages] {
            if *page & STALE == 0 {
                newly.add(*page, 1);
                *page = *page & !UNSETTLED | STALE;
            }
        }
    }

    /// Makes pages that are not stale settled, or unsettled. Returns whether anything is different from before.
    pub(super) fn settle(&mut self, pages: Range<usize>, settled: bool, counts: &mut Counts) -> bool {
        let turned = |byte: u8| match byte & (KIND | STALE) {
            ZERO | KNOWN if settled => byte & !UNSETTLED,
            ZERO | KNOWN => byte | UNSETTLED,
            _ => byte,
        };
        if let Self::Alike { page, len, .. } = self
            && pages.len() == usize::from(*len)
        {
            let (before, after) = (*page, turned(*page));
            *page = after;
            counts.turn(before, after, u64::from(*len));
            return before != after;
        }
        if pages.clone().all(|index| turned(self.byte(index)) == self.byte(index)) {
            return false;
        }
        for page in &mut self.block().pages[pages] {
            let before = *page;
            *page = turned(before);
            counts.turn(before, *page, 1);
        }
        true
    }

    /// Returns whether anything is different from before.
    pub(super) fn publish(
        &mut self,
        start: usize,
        contents: &[Option<Content>],
        first_page: u32,
        how: Publication,
        counts: &mut Counts,
        changes: &mut Vec<Change>,
    ) -> bool {
        if let Some(touched) = self.publish_alike(contents, how, counts) {
            return touched;
        }
        let nothing_new = contents.iter().enumerate().all(|(i, content)| {
            content.is_none_or(|content| {
                let fingerprint = match content {
                    Content::Fingerprint(fingerprint) => Some(fingerprint),
                    Content::Absent | Content::Zero => None,
                };
                self.byte(start + i) == how.byte(content) && self.page(start + i).fingerprint == fingerprint
            })
        });
        if nothing_new {
            return false;
        }
        let block = self.block();
        for (i, content) in contents.iter().enumerate() {
            let Some(content) = content else { continue };
            block.set(start + i, first_page + i as u32, *content, how, counts, changes);
        }
        true
    }

    /// Publishes a whole chunk that was alike and stays alike, without making a block of it.
    fn publish_alike(
        &mut self,
        contents: &[Option<Content>],
        how: Publication,
        counts: &mut Counts,
    ) -> Option<bool> {
        let Self::Alike { page, len, generation: since } = self else { return None };
        let byte = match (*contents.first()?)? {
            Content::Fingerprint(_) => return None,
            content => how.byte(content),
        };
        if contents.len() != usize::from(*len) || contents.iter().any(|content| *content != contents[0]) {
            return None;
        }
        if *page == byte {
            return Some(false);
        }
        if *page & KIND != byte & KIND {
            *since = how.generation;
        }
        counts.turn(*page, byte, u64::from(*len));
        *page = byte;
        Some(true)
    }

    pub(super) fn count(&self, counts: &mut Counts) {
        match self {
            Self::Alike { page, len, .. } => counts.add(*page, u64::from(*len)),
            Self::Each(block) => {
                for page in &block.pages[..usize::from(block.len)] {
                    counts.add(*page, 1);
                }
            }
        }
    }

    pub(super) fn truncate(&mut self, to: usize) {
        match self {
            Self::Alike { len, .. } => *len = (*len).min(to as u16),
            Self::Each(block) => {
                let block = Arc::make_mut(block);
                block.len = block.len.min(to as u16);
            }
        }
    }

    /// Appends `more` unknown pages.
    pub(super) fn grow(&mut self, more: usize) {
        if more == 0 {
            return;
        }
        let block = self.block();
        let (from, to) = (usize::from(block.len), usize::from(block.len) + more);
        block.pages[from..to].fill(UNKNOWN | STALE);
        block.distance[from..to].fill(0);
        block.len = to as u16;
    }

    pub(super) fn compact(&mut self) {
        let Self::Each(block) = self else { return };
        let len = usize::from(block.len);
        let page = block.pages[0];
        if page & KIND == KNOWN || block.pages[1..len].iter().any(|other| *other != page) {
            return;
        }
        let Some(newest) = (0..len).map(|index| block.generation(index)).max() else { return };
        *self = Self::Alike { page, len: len as u16, generation: newest };
    }

    /// This chunk as a block of its own that may be written.
    fn block(&mut self) -> &mut Block {
        if let Self::Alike { page, len, generation } = *self {
            *self = Self::Each(Arc::new(Block {
                len,
                pages: [page; CHUNK_PAGES],
                base: generation,
                distance: [0; CHUNK_PAGES],
                fingerprints: [Fingerprint::new([0; 32]); CHUNK_PAGES],
            }));
        }
        match self {
            Self::Each(block) => Arc::make_mut(block),
            Self::Alike { .. } => unreachable!("made into a block just above"),
        }
    }
}

impl Block {
    fn generation(&self, index: usize) -> Generation {
        Generation(self.base.0 + u64::from(self.distance[index]))
    }

    fn set(
        &mut self,
        index: usize,
        page: u32,
        content: Content,
        how: Publication,
        counts: &mut Counts,
        changes: &mut Vec<Change>,
    ) {
        let byte = self.pages[index];
        let before = (byte & KIND == KNOWN).then(|| self.fingerprints[index]);
        let after = match content {
            Content::Absent | Content::Zero => None,
            Content::Fingerprint(fingerprint) => Some(fingerprint),
        };
        let now = how.byte(content);
        if byte & KIND != now & KIND || before != after {
            self.set_generation(index, how.generation);
            if let Some(after) = after {
                self.fingerprints[index] = after;
            }
            if before != after {
                changes.push(Change { page, before, after });
            }
        }
        counts.turn(byte, now, 1);
        self.pages[index] = now;
    }

    fn set_generation(&mut self, index: usize, generation: Generation) {
        let distance = generation.0.saturating_sub(self.base.0);
        if let Ok(distance) = u32::try_from(distance) {
            self.distance[index] = distance;
            return;
        }
        // Four billion generations on: begin to count anew. Older pages then look as if they had changed at the new
        // base, which makes a reader of "changed since" look at them once too often, never once too few.
        self.base = generation;
        self.distance = [0; CHUNK_PAGES];
    }
}

/// In which generation something is published, and whether it is settled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publication {
    pub(super) generation: Generation,
    pub(super) settled: bool,
}

impl Publication {
    /// What becomes of a page's byte.
    fn byte(self, content: Content) -> u8 {
        let unsettled = if self.settled { 0 } else { UNSETTLED };
        match content {
            Content::Absent => ABSENT,
            Content::Zero => ZERO | unsettled,
            Content::Fingerprint(_) => KNOWN | unsettled,
        }
    }
}

/// The state as far as any write can be seen.
pub(super) fn held(page: u8) -> PageState {
    match page & (STALE | KIND) {
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
