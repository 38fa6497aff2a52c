//! Known pages held against the memory: read again, hashed, compared; and what it means when they differ.
//!
//! Owns the verdict, for whoever asks (`verify`, the [content audit](super::content)). A page that differs was written since, or its
//! fingerprint was wrong. Which of the two is asked in the same order as before a publication: the bytes first, then the page table, then
//! the marks. A page that is not *positively* protected, or has been marked, was written (or thrown away): it is stale, and no mismatch.
//! What is left changed although every witness stood guard over it. That is never passed over: it is counted, said with all that is
//! known of the page, and the VM is advisory from then on, until the tracker ends or discovery finds who it was.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use memdex_wire::{Fingerprint, event::Event, page::PageState};
use roaring::RoaringBitmap;

use super::{Lost, Tracker, trouble::Trouble};
use crate::{
    map::{Content, PageView},
    memory::{MemoryError, RegionMemory},
    units::{Generation, PageRange, bytes},
    watch::{
        pagemap::ScanError,
        queue::{bridged, runs},
    },
};

/// A look at the page table bridges gaps of this many pages: a system call costs about as much as walking them.
const GAP: u32 = 64;
/// Mismatches of one check that are described in the log one by one.
const DESCRIBED: usize = 16;
/// Batches whose time of publication is remembered.
const REMEMBERED: usize = 32;
/// A mismatch is put down to what discovery finds within this time: it looks twice a second, a foreign writer need not wait for it.
const EXPLAINED: Duration = Duration::from_secs(2);

/// A page as the map has it.
pub(super) type Known = (u32, PageView);

/// What a check found.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Pages that were judged.
    pub checked: u64,
    /// Pages that were not: written or thrown away meanwhile, or not readable.
    pub passed_over: u64,
    /// Judged, and not what the map said.
    pub wrong: Vec<Known>,
}

/// A page that does not read as the map says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Differing {
    pub(super) page: u32,
    before: PageView,
    now: Content,
}

/// Pages that changed unseen.
#[derive(Debug)]
pub(super) struct Distrust {
    pages: u64,
    first: u32,
    region: String,
    last: Instant,
}

impl Distrust {
    /// What people are told.
    pub(super) fn reason(&self) -> String {
        let Self { pages, first, region, .. } = self;
        format!(
            "{pages} of its pages changed and no witness saw the write (the first one: page {first} in {region}): something writes this \
             memory unseen, so all of it is read again now and then; keep the log of memdexd, and restart it once the cause is found"
        )
    }

    /// Whether a doubt that discovery has just found may be the reason.
    pub(super) fn is_recent(&self) -> bool {
        self.last.elapsed() < EXPLAINED
    }
}

/// The last publications, for the description of a page that went wrong.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(Instant, RoaringBitmap)>);

impl History {
    pub(super) fn published(&mut self, pages: RoaringBitmap) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((Instant::now(), pages));
    }

    fn since(&self, page: u32) -> Option<Duration> {
        self.0.iter().rev().find(|(_, pages)| pages.contains(page)).map(|(at, _)| at.elapsed())
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Tracker {
    /// The pages of a window that are in one of these states, in order, as the map has them. Unsettled ones may differ: they are not among them.
    pub(super) fn known(&self, window: PageRange, states: &[PageState]) -> Vec<Known> {
        let map = self.vm.map();
        let known = map.in_state(window.clone(), states) - map.unsettled(window);
        known.iter().map(|page| (page, map.page(page))).collect()
    }

    /// Reads pages of one region again. `known` is what the map says right now: only this thread changes it.
    pub(super) fn check(
        &mut self,
        region: usize,
        known: &[Known],
        digest: impl FnOnce(&RegionMemory, &[PageRange]) -> Result<Vec<Option<Fingerprint>>, MemoryError>,
    ) -> Result<Checked, Lost> {
        let pages = known.len() as u64;
        let not_judged = Checked { passed_over: pages, ..Checked::default() };
        let Some(differing) = self.differing(region, known, digest)? else { return Ok(not_judged) };
        if differing.is_empty() {
            return Ok(Checked { checked: pages, ..Checked::default() });
        }
        let differ: RoaringBitmap = differing.iter().map(|differing| differing.page).collect();
        // Without protection there is nothing to hold the difference against: such regions are read again because they change unseen.
        let (mut armed, mut written) = (RoaringBitmap::new(), RoaringBitmap::new());
        if self.regions[region].armed() {
            match self.protection(region, &differ, &mut armed, &mut written).map_err(Trouble::from) {
                Ok(()) => {}
                Err(Trouble::Lost(lost)) => return Err(lost),
                Err(_) => {
                    self.region_not_watched(region)?;
                    return Ok(not_judged);
                }
            }
        }
        self.take_marks();
        let marked: RoaringBitmap = differ.iter().filter(|page| self.vm.is_stale(*page)).collect();
        if self.marks_see_writes() {
            self.vm.counters.missed_by_ebpf.add((&written - &marked).len());
        }
        // Where nobody tells of discards, a page that is gone was thrown away, and so was one that is all zero.
        let told = self.told_of_discards();
        let thrown_away = |now| matches!(now, Content::Absent | Content::Zero);
        let gone = differing.iter().filter(|differing| !told && thrown_away(differing.now));
        let mut excused = (&differ - &armed) | &marked;
        excused.extend(gone.map(|differing| differing.page));
        self.stale(&excused);
        self.queue.written(&written);
        self.queue.ready(&((&excused - &written) - &marked));

        let wrong: Vec<Differing> =
            differing.into_iter().filter(|differing| !excused.contains(differing.page)).collect();
        self.mismatch(region, &wrong);
        Ok(Checked {
            checked: pages - excused.len(),
            passed_over: excused.len(),
            wrong: wrong.iter().map(|differing| (differing.page, differing.before)).collect(),
        })
    }

    /// Which pages no longer read as the map says; `None` if the region cannot be read.
    pub(super) fn differing(
        &self,
        region: usize,
        known: &[Known],
        digest: impl FnOnce(&RegionMemory, &[PageRange]) -> Result<Vec<Option<Fingerprint>>, MemoryError>,
    ) -> Result<Option<Vec<Differing>>, Lost> {
        let watched = &self.regions[region];
        let Some(memory) = watched.memory.clone().filter(|_| watched.readable()) else { return Ok(None) };
        let pages: RoaringBitmap = known.iter().map(|(page, _)| *page).collect();
        let mut data = Vec::new();
        let found = runs(&pages)
            .try_for_each(|run| memory.data(&self.pagemap, watched.relative(&run), &mut data))
            .and_then(|()| digest(&memory, &data));
        let digests = match found {
            Ok(digests) => digests,
            Err(MemoryError::Gone) => return Err(Lost::ended()),
            Err(_) => return Ok(None),
        };
        let mut read =
            data.iter().cloned().flatten().map(|page| page + watched.first_page).zip(digests).peekable();
        let mut differing = Vec::new();
        for (page, before) in known {
            let now = match read.next_if(|(at, _)| at == page) {
                None => Content::Absent,
                Some((_, None)) => Content::Zero,
                Some((_, Some(fingerprint))) => Content::Fingerprint(fingerprint),
            };
            let same = match now {
                Content::Absent | Content::Zero => before.fingerprint.is_none(),
                Content::Fingerprint(fingerprint) => before.fingerprint == Some(fingerprint),
            };
            if !same {
                differing.push(Differing { page: *page, before: *before, now });
            }
        }
        Ok(Some(differing))
    }

    /// Which of `pages` are protected, and which have been written since they were. Those that have no entry in the page table are
    /// neither. Read-only.
    pub(super) fn protection(
        &self,
        region: usize,
        pages: &RoaringBitmap,
        armed: &mut RoaringBitmap,
        written: &mut RoaringBitmap,
    ) -> Result<(), ScanError> {
        for run in bridged(pages, GAP) {
            self.sighted(region, &run, armed, written)?;
        }
        *armed &= pages;
        *written &= pages;
        Ok(())
    }

    /// Says and counts what must not be, and draws the conclusion.
    fn mismatch(&mut self, region: usize, wrong: &[Differing]) {
        let Some(first) = wrong.first() else { return };
        for differing in wrong.iter().take(DESCRIBED) {
            self.describe(region, differing);
        }
        if wrong.len() > DESCRIBED {
            tracing::error!(vm = %self.vm.id(), more = wrong.len() - DESCRIBED, "more pages differ from what the map says");
        }
        // Where somebody is known who writes unseen, that was it, and all is read again anyway once he has gone.
        if !self.explained() {
            let name = &self.regions[region].region.name;
            let new = || Distrust { pages: 0, first: first.page, region: name.clone(), last: Instant::now() };
            let distrust = self.distrust.get_or_insert_with(new);
            distrust.pages += wrong.len() as u64;
            distrust.last = Instant::now();
            self.looks.distrusted(self.pass_began);
        }
        let pages: RoaringBitmap = wrong.iter().map(|differing| differing.page).collect();
        self.stale(&pages);
        self.queue.ready(&pages);
        self.update_status();
        // Last, so that whoever sees the figure also sees what follows from it.
        self.vm.counters.mismatches.add(wrong.len() as u64);
    }

    /// Everything that is known of a page that is wrong.
    fn describe(&self, region: usize, differing: &Differing) {
        let Differing {
            page,
            before: PageView { state, fingerprint, generation: Generation(generation), .. },
            now,
        } = *differing;
        let watched = &self.regions[region];
        let settled = self.history.since(page).map(|since| since.as_millis() as u64);
        let remembered = self.history.0.front().map(|(at, _)| at.elapsed().as_millis() as u64);
        let hex = |fingerprint: Option<Fingerprint>| fingerprint.map(|fingerprint| fingerprint.to_string());
        let now = match now {
            Content::Absent => "a hole".to_owned(),
            Content::Zero => "zeros".to_owned(),
            Content::Fingerprint(fingerprint) => fingerprint.to_string(),
        };
        tracing::error!(
            vm = %self.vm.id(),
            region = watched.region.name,
            page,
            offset = bytes(u64::from(page - watched.first_page)),
            ?state,
            generation,
            before = hex(fingerprint),
            now,
            // How it was settled last: `None` is longer ago than is remembered.
            settled_ms_ago = settled,
            remembered_ms = remembered,
            armed = watched.armed(),
            epoch = watched.epoch,
            marked = self.queue.awaited().contains(page),
            discarding = self.queue.in_discard().contains(page),
            queued = self.queue.all().contains(page),
            marks_attached = self.marks.is_some(),
            marks_read_ms_ago = self.looks.marks_read().as_millis() as u64,
            audited_ms_ago = self.looks.audited().as_millis() as u64,
            missed_by_ebpf = self.vm.counters.missed_by_ebpf.get(),
            missed_by_scan = self.vm.counters.missed_by_scan.get(),
            "a page differs from what the map says and nobody saw it written; it is stale now, and tracking is advisory"
        );
        self.shared.announce(Event::Mismatch { vm: self.vm.id().to_owned(), page: u64::from(page) });
    }
}
