//! 512 pages of a map.

use std::{ops::Range, sync::Arc};

use memdex_wire::{Fingerprint, page::PageState};

use super::{
    Change,
    block::{
        ABSENT, Block, CHUNK_PAGES, INHERITED, KIND, KNOWN, PageBits, STALE, UNKNOWN, UNSETTLED, ZERO, held,
        inherit, shown, stale,
    },
    cell::Cell,
    counts::Counts,
    store::{Alike, LeftChunk, Slot},
};
use crate::units::Generation;

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

#[derive(Debug, Clone)]
pub(super) enum Chunk {
    /// Every page is alike, and none has a fingerprint.
    Alike { page: u8, len: u16, generation: Generation },
    /// Pages differ.
    Each(Arc<Slot>),
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        usize::from(match self {
            Self::Alike { len, .. } => *len,
            Self::Each(block) => block.len() as u16,
        })
    }

    pub(super) fn page(&self, index: usize) -> PageView {
        let (page, fingerprint, generation) = match self {
            Self::Alike { page, generation, .. } => (*page, None, *generation),
            Self::Each(block) => {
                let page = block.byte(index);
                let known = (page & KIND == KNOWN).then(|| block.fingerprint(index));
                (page, known, block.generation(index))
            }
        };
        PageView { state: shown(page), held: held(page), fingerprint, generation }
    }

    /// Whether a page holds this content, as far as any write can be seen.
    pub(super) fn holds(&self, index: usize, fingerprint: &Fingerprint) -> bool {
        match self {
            Self::Alike { .. } => false,
            Self::Each(block) => index < block.len() && block.holds(index, fingerprint),
        }
    }

    /// The byte of a page: cheaper than [`Chunk::page`].
    fn byte(&self, index: usize) -> u8 {
        match self {
            Self::Alike { page, .. } => *page,
            Self::Each(block) => block.byte(index),
        }
    }

    /// The one state (as held) of all pages, if there is one without looking at each.
    pub(super) fn uniform_state(&self) -> Option<PageState> {
        match self {
            Self::Alike { page, .. } => Some(held(*page)),
            Self::Each(_) => None,
        }
    }

    /// A bit for each page; `None` if no page has a fingerprint.
    pub(super) fn bits(&self, since: Generation) -> Option<PageBits> {
        match self {
            Self::Alike { .. } => None,
            Self::Each(block) => Some(block.bits(since)),
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

    /// Whether an earlier daemon knew the page, and this one has not looked yet.
    pub(super) fn inherited(&self, index: usize) -> bool {
        self.byte(index) & INHERITED != 0
    }

    /// The state in which it was left; stale if it was not inherited.
    pub(super) fn inherited_state(&self, index: usize) -> PageState {
        match self.byte(index) {
            byte if byte & INHERITED != 0 => held(byte & !INHERITED),
            _ => PageState::Stale,
        }
    }

    /// Counts into `newly` the pages that were not stale or only inherited, by what they were.
    pub(super) fn mark_stale(&mut self, cell: Cell<'_>, pages: Range<usize>, newly: &mut Counts) {
        let mut turn = |page: u8, count: u64| {
            newly.add(page, count);
            stale(page)
        };
        if let Self::Alike { page, len, generation } = self {
            if *page & STALE != 0 {
                return;
            }
            if pages.len() == usize::from(*len) {
                *page = turn(*page, u64::from(*len));
                cell.alike(*page, *len, *generation);
                return;
            }
        }
        // A look first: marking what is stale already must not copy a block that a snapshot holds.
        if pages.clone().all(|index| self.byte(index) & STALE != 0) {
            return;
        }
        let block = self.block(cell);
        for index in pages {
            let page = block.byte(index);
            if page & STALE == 0 {
                block.set_byte(index, turn(page, 1));
            }
        }
    }

    /// Makes pages that are not stale settled, or unsettled. Returns whether anything is different from before.
    pub(super) fn settle(
        &mut self,
        cell: Cell<'_>,
        pages: Range<usize>,
        settled: bool,
        counts: &mut Counts,
    ) -> bool {
        self.turn(cell, pages, counts, |byte| match byte & (KIND | STALE | INHERITED) {
            ZERO | KNOWN if settled => byte & !UNSETTLED,
            ZERO | KNOWN => byte | UNSETTLED,
            _ => byte,
        })
    }

    /// What an earlier daemon knew of these pages holds. Returns whether anything is different from before.
    pub(super) fn confirm(&mut self, cell: Cell<'_>, pages: Range<usize>, counts: &mut Counts) -> bool {
        self.turn(cell, pages, counts, |byte| byte & !INHERITED)
    }

    /// Changes the bytes of pages.
    fn turn(
        &mut self,
        cell: Cell<'_>,
        pages: Range<usize>,
        counts: &mut Counts,
        turned: impl Fn(u8) -> u8,
    ) -> bool {
        if let Self::Alike { page, len, generation } = self
            && pages.len() == usize::from(*len)
        {
            let (before, after) = (*page, turned(*page));
            *page = after;
            cell.alike(after, *len, *generation);
            counts.turn(before, after, u64::from(*len));
            return before != after;
        }
        if pages.clone().all(|index| turned(self.byte(index)) == self.byte(index)) {
            return false;
        }
        let block = self.block(cell);
        for index in pages {
            let before = block.byte(index);
            block.set_byte(index, turned(before));
            counts.turn(before, turned(before), 1);
        }
        true
    }

    /// Returns whether anything is different from before.
    pub(super) fn publish(
        &mut self,
        cell: Cell<'_>,
        start: usize,
        contents: &[Option<Content>],
        how: Publication,
        counts: &mut Counts,
        changes: &mut Vec<Change>,
    ) -> bool {
        if let Some(touched) = self.publish_alike(cell, contents, how, counts) {
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
        if how.settled {
            cell.settled();
        }
        let first_page = (cell.chunk * CHUNK_PAGES + start) as u32;
        let block = self.block(cell);
        for (i, content) in contents.iter().enumerate() {
            let Some(content) = *content else { continue };
            let now = how.byte(content);
            let before = block.set(start + i, first_page + i as u32, content, now, how.generation, changes);
            counts.turn(before, now, 1);
        }
        true
    }

    /// Publishes a whole chunk that was alike and stays alike, without making a block of it.
    fn publish_alike(
        &mut self,
        cell: Cell<'_>,
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
        if how.settled {
            cell.settled();
        }
        cell.alike(byte, *len, *since);
        Some(true)
    }

    pub(super) fn count(&self, counts: &mut Counts) {
        match self {
            Self::Alike { page, len, .. } => counts.add(*page, u64::from(*len)),
            Self::Each(block) => {
                for index in 0..block.len() {
                    counts.add(block.byte(index), 1);
                }
            }
        }
    }

    pub(super) fn truncate(&mut self, cell: Cell<'_>, to: usize) {
        match self {
            Self::Alike { page, len, generation } => {
                *len = (*len).min(to as u16);
                cell.alike(*page, *len, *generation);
            }
            Self::Each(_) => self.block(cell).truncate(to),
        }
    }

    /// Appends `more` unknown pages.
    pub(super) fn grow(&mut self, cell: Cell<'_>, more: usize) {
        if more > 0 {
            self.block(cell).grow(more);
        }
    }

    pub(super) fn compact(&mut self, cell: Cell<'_>) {
        let Self::Each(block) = self else { return };
        let len = block.len();
        let page = block.byte(0);
        if page & KIND == KNOWN || (1..len).any(|index| block.byte(index) != page) {
            return;
        }
        let Some(newest) = (0..len).map(|index| block.generation(index)).max() else { return };
        cell.alike(page, len as u16, newest);
        *self = Self::Alike { page, len: len as u16, generation: newest };
    }

    /// A new chunk of unknown pages.
    pub(super) fn unknown(cell: Cell<'_>, len: usize, generation: Generation) -> Self {
        cell.alike(UNKNOWN | STALE, len as u16, generation);
        Self::Alike { page: UNKNOWN | STALE, len: len as u16, generation }
    }

    /// A chunk that an earlier daemon left. `in_doubt`: direct I/O may have arrived after it was read.
    pub(super) fn inherit(cell: Cell<'_>, left: LeftChunk, in_doubt: bool) -> Self {
        match left {
            LeftChunk::Alike(Alike { page, len, generation }) => {
                let (page, generation) = (inherit(page, in_doubt), Generation(generation));
                cell.alike(page, len, generation);
                Self::Alike { page, len, generation }
            }
            LeftChunk::Each(mut slot) => {
                for index in 0..slot.len() {
                    let byte = slot.byte(index);
                    slot.set_byte(index, inherit(byte, in_doubt));
                }
                Self::Each(Arc::new(slot))
            }
        }
    }

    /// Fingerprints and pages that hold them, or did when they were last read.
    pub(super) fn fingerprints(&self) -> impl Iterator<Item = (usize, Fingerprint)> + '_ {
        let block = match self {
            Self::Alike { .. } => None,
            Self::Each(block) => Some(block),
        };
        block.into_iter().flat_map(|block| {
            (0..block.len())
                .filter(|index| block.byte(*index) & KIND == KNOWN)
                .map(|index| (index, block.fingerprint(index)))
        })
    }

    /// This chunk as a block of its own that may be written.
    fn block(&mut self, cell: Cell<'_>) -> &mut Block {
        if let Self::Alike { page, len, generation } = *self {
            let block = Block::alike(page, usize::from(len), generation);
            *self = Self::Each(Arc::new(Slot::new(cell.store, &block)));
        }
        match self {
            Self::Each(slot) => {
                // A copy if a snapshot holds it. The table has to name the copy before that is changed, and before the old one is let go: the snapshot may
                // have let go of it meanwhile, and then its room is given away. So not `Arc::make_mut`, which lets go first.
                if Arc::get_mut(slot).is_none() {
                    let copy = Arc::new(Slot::clone(slot));
                    cell.each(&copy);
                    *slot = copy;
                } else {
                    cell.each(slot);
                }
                Arc::get_mut(slot)
                    .expect("nobody else has it: it is new, or was ours alone and the map is borrowed")
            }
            Self::Alike { .. } => unreachable!("made into a block just above"),
        }
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
