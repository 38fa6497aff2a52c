//! 512 pages of a map.

use std::{ops::Range, sync::Arc};

use memdex_wire::{Fingerprint, page::PageState, vm::PageCounts};

use super::Change;
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
    /// The state as the API shows it.
    pub state: PageState,
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
        PageView { state: state(page), fingerprint, generation }
    }

    /// The byte of a page: cheaper than [`Chunk::page`].
    fn byte(&self, index: usize) -> u8 {
        match self {
            Self::Alike { page, .. } => *page,
            Self::Each(block) => block.pages[index],
        }
    }

    /// The one state of all pages, if there is one without looking at each.
    pub(super) fn uniform_state(&self) -> Option<PageState> {
        match self {
            Self::Alike { page, .. } => Some(state(*page)),
            Self::Each(_) => None,
        }
    }

    pub(super) fn state(&self, index: usize) -> PageState {
        state(self.byte(index))
    }

    /// Counts into `newly` the pages that were not stale, by the state they had.
    pub(super) fn mark_stale(&mut self, pages: Range<usize>, newly: &mut PageCounts) {
        if let Self::Alike { page, len, .. } = self {
            if *page & STALE != 0 {
                return;
            }
            if pages.len() == usize::from(*len) {
                add(newly, *page, u64::from(*len));
                *page |= STALE;
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
                add(newly, *page, 1);
                *page |= STALE;
            }
        }
    }

    /// Returns whether anything is different from before.
    pub(super) fn publish(
        &mut self,
        start: usize,
        contents: &[Option<Content>],
        first_page: u32,
        generation: Generation,
        counts: &mut PageCounts,
        changes: &mut Vec<Change>,
    ) -> bool {
        if let Some(touched) = self.publish_alike(contents, generation, counts) {
            return touched;
        }
        let nothing_new = contents.iter().enumerate().all(|(i, content)| {
            content.is_none_or(|content| {
                self.byte(start + i) & STALE == 0 && content_of(&self.page(start + i)) == Some(content)
            })
        });
        if nothing_new {
            return false;
        }
        let block = self.block();
        for (i, content) in contents.iter().enumerate() {
            let Some(content) = content else { continue };
            block.set(start + i, first_page + i as u32, *content, generation, counts, changes);
        }
        true
    }

    /// Publishes a whole chunk that was alike and stays alike, without making a block of it.
    fn publish_alike(
        &mut self,
        contents: &[Option<Content>],
        generation: Generation,
        counts: &mut PageCounts,
    ) -> Option<bool> {
        let Self::Alike { page, len, generation: since } = self else { return None };
        let kind = match contents.first()? {
            Some(Content::Absent) => ABSENT,
            Some(Content::Zero) => ZERO,
            _ => return None,
        };
        if contents.len() != usize::from(*len) || contents.iter().any(|content| *content != contents[0]) {
            return None;
        }
        if *page == kind {
            return Some(false);
        }
        if *page & KIND != kind {
            *since = generation;
        }
        take(counts, *page, u64::from(*len));
        *page = kind;
        add(counts, *page, u64::from(*len));
        Some(true)
    }

    pub(super) fn count(&self, counts: &mut PageCounts) {
        match self {
            Self::Alike { page, len, .. } => {
                add(counts, *page, u64::from(*len));
                counts.total += u64::from(*len);
            }
            Self::Each(block) => {
                for page in &block.pages[..usize::from(block.len)] {
                    add(counts, *page, 1);
                }
                counts.total += u64::from(block.len);
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
        generation: Generation,
        counts: &mut PageCounts,
        changes: &mut Vec<Change>,
    ) {
        let byte = self.pages[index];
        let before = (byte & KIND == KNOWN).then(|| self.fingerprints[index]);
        let (kind, after) = match content {
            Content::Absent => (ABSENT, None),
            Content::Zero => (ZERO, None),
            Content::Fingerprint(fingerprint) => (KNOWN, Some(fingerprint)),
        };
        if byte & KIND != kind || before != after {
            self.set_generation(index, generation);
            if let Some(after) = after {
                self.fingerprints[index] = after;
            }
            if before != after {
                changes.push(Change { page, before, after });
            }
        }
        take(counts, byte, 1);
        self.pages[index] = kind;
        add(counts, kind, 1);
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

fn content_of(view: &PageView) -> Option<Content> {
    match (view.state, view.fingerprint) {
        (PageState::Absent, _) => Some(Content::Absent),
        (PageState::Zero, _) => Some(Content::Zero),
        (PageState::Current, Some(fingerprint)) => Some(Content::Fingerprint(fingerprint)),
        _ => None,
    }
}

fn state(page: u8) -> PageState {
    match page & (STALE | KIND) {
        ABSENT => PageState::Absent,
        ZERO => PageState::Zero,
        KNOWN => PageState::Current,
        _ => PageState::Stale,
    }
}

fn counter(counts: &mut PageCounts, page: u8) -> &mut u64 {
    match state(page) {
        PageState::Absent => &mut counts.absent,
        PageState::Zero => &mut counts.zero,
        PageState::Current => &mut counts.current,
        PageState::Stale => &mut counts.stale,
    }
}

fn add(counts: &mut PageCounts, page: u8, pages: u64) {
    *counter(counts, page) += pages;
}

fn take(counts: &mut PageCounts, page: u8, pages: u64) {
    *counter(counts, page) -= pages;
}
