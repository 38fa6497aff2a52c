//! `sync` and `verify`: work that somebody waits for.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::{
    job::{Mismatch, SyncReport, VerifyReport},
    page::PageState,
};
use roaring::RoaringBitmap;
use tokio::sync::oneshot;

use super::{Lost, Tracker, digest::digest};
use crate::host::JobError;

/// Pages settled for a sync before the marks are looked at again.
const BATCH: u64 = 2048;
/// Pages in a batch when the first attempt found them written meanwhile: the shorter the time from arming to checking, the
/// better the chance.
const TIGHT: u64 = 4;
/// A page that was written again in each of so many attempts is hot: it counts as of the call.
const ATTEMPTS: u32 = 5;
/// So long a sync waits for a marked write to land, before it takes the mark for one without a write.
const GRACE: Duration = Duration::from_millis(50);
/// Unsettled pages read again at a time for a guest that stands still.
const STILL_BATCH: u32 = 16384;
/// Pages read again at a time by a verify.
const VERIFY_BATCH: u32 = 4096;
/// Mismatches described in the answer.
const EXAMPLES: usize = 16;

/// What somebody waits for.
#[derive(Debug)]
pub(super) enum Job {
    Sync(SyncJob),
    Verify(VerifyJob),
}

type Reply<T> = oneshot::Sender<Result<T, JobError>>;

/// Every page that was not current at the call is to be settled once.
#[derive(Debug)]
pub(super) struct SyncJob {
    began: Instant,
    deadline: Instant,
    /// No write is on its way: what is marked has landed, or never will.
    still: bool,
    /// Unsettled pages, to be read once more: the guest stands still, so no direct I/O is under way.
    unsettled: RoaringBitmap,
    unsettled_read: u64,
    /// Everything has been armed for this attempt, where it is armed at once.
    armed: bool,
    todo: RoaringBitmap,
    again: RoaringBitmap,
    attempt: u32,
    reply: Reply<SyncReport>,
}

/// Every page that is current is read again.
#[derive(Debug)]
pub(super) struct VerifyJob {
    began: Instant,
    next: u32,
    checked: u64,
    skipped: u64,
    mismatches: u64,
    examples: Vec<Mismatch>,
    reply: Reply<VerifyReport>,
}

impl Tracker {
    /// Begins a sync: first an audit, so that the answer does not rest on marks.
    pub(super) fn begin_sync(
        &mut self,
        deadline: Instant,
        still: bool,
        reply: Reply<SyncReport>,
    ) -> Result<(), Lost> {
        let began = Instant::now();
        self.take_marks();
        let armed = self.arm_whole()?;
        self.audit()?;
        self.last_audit = Instant::now();
        let snapshot = self.vm.snapshot();
        let mut todo = snapshot.in_state(0..u32::MAX, &[PageState::Stale]);
        let unsettled = if still { snapshot.unsettled(0..u32::MAX) } else { RoaringBitmap::new() };
        drop(snapshot);
        for watched in &self.regions {
            if watched.readable() && (!watched.armed() || self.doubted()) {
                todo.insert_range(watched.range());
            } else if !watched.readable() {
                todo.remove_range(watched.range());
            }
        }
        // What is read again now and then is read now.
        self.last_rehash = Instant::now();
        self.begin_reading();
        self.jobs.push_back(Job::Sync(SyncJob {
            began,
            deadline,
            still,
            unsettled,
            unsettled_read: 0,
            armed,
            todo,
            again: RoaringBitmap::new(),
            attempt: 1,
            reply,
        }));
        Ok(())
    }

    /// Begins a verify.
    pub(super) fn begin_verify(&mut self, reply: Reply<VerifyReport>) {
        self.jobs.push_back(Job::Verify(VerifyJob {
            began: Instant::now(),
            next: 0,
            checked: 0,
            skipped: 0,
            mismatches: 0,
            examples: Vec::new(),
            reply,
        }));
    }

    /// Jobs under way cannot be answered: the pages were numbered anew, or the VM is gone.
    pub(super) fn abandon_jobs(&mut self, error: JobError) {
        for job in std::mem::take(&mut self.jobs) {
            match job {
                Job::Sync(job) => drop(job.reply.send(Err(error))),
                Job::Verify(job) => drop(job.reply.send(Err(error))),
            }
        }
    }

    /// Does a piece of the first job. Returns whether more can be done at once.
    pub(super) fn work_on_jobs(&mut self) -> Result<bool, Lost> {
        let mut jobs: VecDeque<_> = std::mem::take(&mut self.jobs);
        let Some(job) = jobs.pop_front() else { return Ok(false) };
        // A layout change inside may abandon the jobs: then this one is answered below all the same.
        let (left, busy) = match job {
            Job::Sync(job) => self.work_on_sync(job)?,
            Job::Verify(job) => self.work_on_verify(job)?,
        };
        // The others' turn comes first: a sync does not wait for a long verify.
        jobs.extend(left);
        self.jobs.extend(jobs);
        Ok(busy)
    }

    fn work_on_sync(&mut self, mut job: SyncJob) -> Result<(Option<Job>, bool), Lost> {
        if job.reply.is_closed() {
            return Ok((None, true));
        }
        if !job.unsettled.is_empty() && Instant::now() < job.deadline {
            self.settle_still(&mut job)?;
            return Ok((Some(Job::Sync(job)), true));
        }
        if job.todo.is_empty() && !job.again.is_empty() && job.attempt < ATTEMPTS {
            job.attempt += 1;
            job.todo = std::mem::take(&mut job.again);
            job.armed = false;
        }
        if job.todo.is_empty() {
            let (generation, pages) = {
                let map = self.vm.map();
                (map.generation().0, map.counts())
            };
            let elapsed_ms = job.began.elapsed().as_millis() as u64;
            let vm = self.vm.id().to_owned();
            let freshness = self.vm.freshness();
            let _ = job.reply.send(Ok(SyncReport {
                vm,
                generation,
                pages,
                unsettled_read: job.unsettled_read,
                staleness_ms: freshness.staleness_ms(),
                oldest_mark_ms: freshness.oldest_mark_ms(),
                elapsed_ms,
            }));
            return Ok((None, true));
        }
        if Instant::now() >= job.deadline {
            let _ = job.reply.send(Err(JobError::Timeout));
            return Ok((None, true));
        }
        if !job.armed {
            job.armed = self.arm_whole()?;
            if !job.armed {
                return Ok((Some(Job::Sync(job)), false));
            }
        }
        let batch = self.sync_batch(&job);
        let spent = self.spent(&batch);
        if !spent.is_empty() {
            // Written since everything was armed: their turn comes with the next attempt.
            job.todo -= &spent;
            job.again |= spent;
            return Ok((Some(Job::Sync(job)), true));
        }
        if batch.is_empty() {
            // All that is left is being discarded or written right now; a moment will tell.
            return Ok((Some(Job::Sync(job)), false));
        }
        let region = self.region_of(batch.min().expect("not empty"));
        job.todo -= &batch;
        let inherited = self.inherited(region, &batch);
        let doubtful = self.settle(region, batch.clone())?;
        // Where something can write unseen, what is queued is read although it is current: not once more right after this, which would make it stale for that time.
        self.queue.served(&(&batch - &doubtful));
        if job.still && !job.reply.is_closed() {
            // Who asked waits for us, and the guest stands still for as long as he does: so it did when these were armed.
            // (What an earlier daemon read was not read just now.)
            self.set_settled(&((&batch - &doubtful) - &inherited), true);
        }
        if self.regions[region].readable() {
            job.again |= doubtful;
        }
        Ok((Some(Job::Sync(job)), true))
    }

    /// A piece of a still sync's unsettled pages. All of them were armed before it was asked for, and the guest's I/O has drained since.
    fn settle_still(&mut self, job: &mut SyncJob) -> Result<(), Lost> {
        let mut pages = std::mem::take(&mut job.unsettled);
        if let Some(first_left) = pages.select(STILL_BATCH) {
            job.unsettled = pages.clone();
            job.unsettled.remove_range(..first_left);
            pages.remove_range(first_left..);
        }
        let (batch, rest) = self.of_one_region(pages);
        job.unsettled |= rest;
        job.unsettled_read += batch.len();
        job.todo |= self.read_once_more(&batch)?;
        Ok(())
    }

    /// The next pages of a sync: of one region, and none that is being discarded or about to be written.
    fn sync_batch(&self, job: &SyncJob) -> RoaringBitmap {
        let most = if job.attempt == 1 || self.arms_whole() { BATCH } else { TIGHT };
        let mut open = &job.todo - self.queue.in_discard();
        if !job.still && job.began.elapsed() < GRACE {
            open -= self.queue.awaited();
        }
        let Some(first) = open.min() else { return open };
        let end = self.regions[self.region_of(first)].range().end;
        open.iter().take_while(|page| *page < end).take(most as usize).collect()
    }

    fn work_on_verify(&mut self, mut job: VerifyJob) -> Result<(Option<Job>, bool), Lost> {
        if job.reply.is_closed() {
            return Ok((None, true));
        }
        let total = self.vm.map().pages();
        if job.next >= total {
            let freshness = self.vm.freshness();
            let _ = job.reply.send(Ok(VerifyReport {
                vm: self.vm.id().to_owned(),
                generation: self.vm.map().generation().0,
                checked: job.checked,
                skipped: job.skipped,
                mismatches: job.mismatches,
                examples: job.examples,
                staleness_ms: freshness.staleness_ms(),
                oldest_mark_ms: freshness.oldest_mark_ms(),
                elapsed_ms: job.began.elapsed().as_millis() as u64,
            }));
            return Ok((None, true));
        }
        let region = self.region_of(job.next);
        let end = self.regions[region].range().end.min(job.next + VERIFY_BATCH);
        self.verify_window(region, job.next..end, &mut job)?;
        job.next = end;
        Ok((Some(Job::Verify(job)), true))
    }

    /// Reads a window again and compares. Pages written meanwhile are no mismatch: they are stale.
    fn verify_window(
        &mut self,
        region: usize,
        window: std::ops::Range<u32>,
        job: &mut VerifyJob,
    ) -> Result<(), Lost> {
        self.take_marks();
        let known = self.known(window.clone(), &[PageState::Current, PageState::Zero, PageState::Absent]);
        let shared = Arc::clone(&self.shared);
        let found = self.check(region, &known, |memory, data| digest(&shared.pool, memory, data))?;
        job.checked += found.checked;
        job.skipped += u64::from(window.end - window.start) - found.checked;
        job.mismatches += found.wrong.len() as u64;
        for (page, view) in found.wrong {
            if job.examples.len() < EXAMPLES {
                job.examples.push(Mismatch { page: u64::from(page), state: view.state });
            }
        }
        Ok(())
    }
}
