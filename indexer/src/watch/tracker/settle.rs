//! arm → read → hash → check → publish, for one batch of pages of one region.

use roaring::RoaringBitmap;

use super::{
    Lost, Tracker,
    digest::{Digests, PIECE, digest_parallel},
    region::cut_between_huge_pages,
    trouble::Trouble,
};
use crate::{
    fingerprint::pool::Pending,
    map::Change,
    memory::MemoryError,
    units::PageRange,
    watch::{
        ebpf::Marks,
        pagemap::ScanError,
        protocol::{self, Armed, Batch, Fresh},
        queue::{bridged, runs},
    },
};

/// A scan for written pages bridges gaps of this many pages: a system call costs about as much as walking them.
const SCAN_GAP: u32 = 64;

/// A batch whose pages are armed and being read.
#[derive(Debug)]
struct Reading {
    batch: Batch<Armed>,
    digests: Pending<Result<Digests, MemoryError>>,
}

impl Tracker {
    /// Settles ready pages until the next look at the marks is due. Returns whether there were any.
    ///
    /// While one batch is read and hashed by the pool, this thread arms the next one and publishes the one before. The marks
    /// are not taken in between, so those set since a batch was armed are all still there when it is published.
    pub(super) fn settle_ready(&mut self) -> Result<bool, Lost> {
        let mut worked = false;
        let mut reading: Option<Reading> = None;
        loop {
            let next = match self.next_batch()? {
                Some((region, pages)) if !worked || self.last_tick.elapsed() < self.options.tick => {
                    worked = true;
                    self.begin(region, pages)?
                }
                Some((_, pages)) => {
                    self.queue.ready(&pages);
                    None
                }
                None => None,
            };
            let Some(done) = std::mem::replace(&mut reading, next) else {
                if reading.is_some() {
                    continue;
                }
                return Ok(worked);
            };
            let unsettled = self.finish(done)?;
            protocol::unsettled(&mut self.queue, unsettled);
        }
    }

    /// The next ready pages that have to be read, all of one region.
    fn next_batch(&mut self) -> Result<Option<(usize, RoaringBitmap)>, Lost> {
        while self.queue.has_ready() {
            let mut batch = self.queue.take(self.batch_pages());
            let Some(first) = batch.min() else { continue };
            let region = self.region_of(first);
            let end = self.regions[region].range().end;
            let mut rest = batch.clone();
            rest.remove_range(..end);
            batch.remove_range(end..);
            rest |=
                cut_between_huge_pages(&self.regions[region], &mut batch, |next| self.queue.is_ready(next));
            self.queue.ready(&rest);
            let current_is_true = self.regions[region].armed() && !self.doubted();
            let marks = self.marks.as_ref();
            let mut batch =
                protocol::to_settle(&self.vm.map(), &mut self.queue, batch, current_is_true, |pages| {
                    with_marks(marks, pages)
                });
            let inherited = self.inherited(region, &batch);
            if !inherited.is_empty() {
                batch -= &inherited;
                let failed = self.confirm(region, &inherited)?;
                self.queue.ready(&failed);
                if self.last_tick.elapsed() >= self.options.tick {
                    // Whatever else there is to do: the marks are looked at with every tick.
                    self.queue.ready(&batch);
                    return Ok(None);
                }
            }
            let spent = self.spent(&batch);
            let mut batch = protocol::armed_only(&mut self.queue, batch, spent);
            if self.regions[region].armed() && !self.arms_whole() {
                batch = self.within_budget(batch);
            }
            if !batch.is_empty() && self.regions[region].readable() {
                return Ok(Some((region, batch)));
            }
        }
        Ok(None)
    }

    /// Enough to keep every hashing thread busy, few enough to be done in some milliseconds.
    fn batch_pages(&self) -> u32 {
        PIECE * 2 * u32::try_from(self.shared.pool.threads()).unwrap_or(u32::MAX).clamp(1, 32)
    }

    /// Settles `pages`, which lie in one region, and waits for it. Returns those whose bytes cannot be vouched for (written or marked
    /// meanwhile, or not readable): they stay as they are.
    pub(super) fn settle(&mut self, region: usize, mut pages: RoaringBitmap) -> Result<RoaringBitmap, Lost> {
        let inherited = self.inherited(region, &pages);
        if !inherited.is_empty() {
            pages -= &inherited;
            pages |= self.confirm(region, &inherited)?;
        }
        let all = pages.clone();
        match self.begin(region, pages)? {
            Some(reading) => self.finish(reading),
            None => Ok(all),
        }
    }

    /// The first half: arms the pages and lets the pool read them. `None` if they cannot be read now.
    fn begin(&mut self, region: usize, pages: RoaringBitmap) -> Result<Option<Reading>, Lost> {
        let batch = Batch::new(region, self.regions[region].epoch, pages);
        if self.regions[region].armed() {
            let newly = batch.make_stale(&mut self.vm.map_mut());
            self.vm.counters.pages_gone_stale.add(newly);
        }
        match self.try_begin(batch) {
            Ok(reading) => Ok(reading),
            Err((trouble, batch)) => {
                self.trouble(region, trouble)?;
                protocol::unsettled(&mut self.queue, batch.into_pages());
                Ok(None)
            }
        }
    }

    fn try_begin(&mut self, batch: Batch<Fresh>) -> Result<Option<Reading>, (Trouble, Batch<Fresh>)> {
        let region = batch.region();
        let watched = &self.regions[region];
        let Some(memory) = watched.memory.clone().filter(|_| watched.readable()) else {
            return Ok(None);
        };

        // Which pages hold anything. A hole needs no arming: any access puts an unprotected page there, which a scan
        // reports as written; and it must not be touched, or indexing would make the guest grow.
        let mut data = Vec::new();
        let mut found = Vec::new();
        let outcome = runs(batch.pages()).try_for_each(|run| {
            found.clear();
            memory.data(&self.pagemap, watched.relative(&run), &mut found)?;
            data.extend(found.iter().map(|run| watched.first_page + run.start..watched.first_page + run.end));
            Ok::<_, MemoryError>(())
        });
        if let Err(error) = outcome {
            return Err((error.into(), batch));
        }

        let relative: Vec<_> = data.iter().map(|run| watched.relative(run)).collect();

        // 1. Arm.
        let mut refused = RoaringBitmap::new();
        if watched.armed() {
            for run in &data {
                if let Err(error) = self.arm(region, run) {
                    tracing::debug!(vm = %self.vm.id(), ?run, %error, "could not arm");
                    if !self.userfault_works(region) {
                        return Err((Trouble::NotWatched, batch));
                    }
                    refused.insert_range(run.clone());
                }
            }
            if !self.arms_whole() {
                self.note_armed(&data);
            }
        }

        // 2. Read and hash.
        let digests = self.shared.pool.start(move || digest_parallel(&memory, &relative));
        Ok(Some(Reading { batch: batch.armed(data, refused), digests }))
    }

    /// The second half: waits for the digests, checks and publishes. Returns the pages that could not be settled.
    fn finish(&mut self, reading: Reading) -> Result<RoaringBitmap, Lost> {
        let Reading { batch, digests } = reading;
        let region = batch.region();
        let (digests, spent) = match digests.wait() {
            Ok(Digests { fingerprints, spent }) => (Ok(fingerprints), spent),
            Err(error) => (Err(error), Vec::new()),
        };
        let batch = match batch.hashed(self.regions[region].epoch, digests) {
            Ok(batch) => batch,
            Err((pages, None)) => return Ok(pages),
            Err((pages, Some(error))) => {
                self.trouble(region, error.into())?;
                return Ok(pages);
            }
        };
        let pages = batch.pages().clone();
        self.vm.counters.pages_read.add(batch.read());

        // 3. Check.
        let mut written = RoaringBitmap::new();
        if self.regions[region].armed()
            && let Err(error) = self.scan_written(region, &pages, &mut written)
        {
            self.trouble(region, error.into())?;
            return Ok(pages);
        }
        self.note_written(&(&written & &pages));
        self.whole.spend(&written);
        let batch = batch.checked(written, |pages| with_marks(self.marks.as_ref(), pages));

        // 4. Publish.
        let mut changes = std::mem::take(&mut self.changes);
        changes.clear();
        let settled = self.settles_at_once(region);
        let doubtful = batch.publish(settled, &mut self.vm.map_mut(), &mut self.queue, &mut changes);
        self.follow(&changes);
        self.changes = changes;
        self.looks.have_read(&pages);
        let published = &pages - &doubtful;
        self.note_published(region, &published);
        self.history.published(published);
        if !self.unseen.is_empty() {
            self.unseen -= pages;
            self.note_progress();
        }
        // After all that others wait for, and while the next batch is being read.
        drop(spent);
        Ok(doubtful)
    }

    /// Keeps the reverse index in step with the map.
    pub(super) fn follow(&self, changes: &[Change]) {
        self.shared.index.follow(self.vm.map_id(), changes);
    }

    fn arm(&self, region: usize, pages: &PageRange) -> Result<(), crate::watch::userfault::ArmError> {
        let Ok(protection) = &self.protection else { return Ok(()) };
        self.vm.counters.arm_calls.add(1);
        self.vm.counters.pages_armed.add(u64::from(pages.end - pages.start));
        protection.arm(self.regions[region].addresses(pages))
    }

    /// Adds to `written` the pages around `pages` that the page table shows as written. Read-only.
    pub(super) fn scan_written(
        &self,
        region: usize,
        pages: &RoaringBitmap,
        written: &mut RoaringBitmap,
    ) -> Result<(), ScanError> {
        let watched = &self.regions[region];
        let mut found = Vec::new();
        for run in bridged(pages, SCAN_GAP) {
            found.clear();
            self.vm.counters.scan_calls.add(1);
            self.vm.counters.pages_scanned.add(u64::from(run.end - run.start));
            self.pagemap.written(watched.addresses(&run), &mut found)?;
            for addresses in &found {
                written.insert_range(watched.pages_at(addresses));
            }
        }
        Ok(())
    }
}

/// Those of `pages` that eBPF has marked since the marks were last taken.
pub(super) fn with_marks(marks: Option<&Marks>, pages: &RoaringBitmap) -> RoaringBitmap {
    let Some(marks) = marks else { return RoaringBitmap::new() };
    let runs = runs(pages).filter(|run| marks.any(run.clone()));
    runs.flatten().filter(|page| marks.any(*page..page + 1)).collect()
}
