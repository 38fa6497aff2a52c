//! The tracker: one thread for each VM that keeps its map true. See [`crate::watch`] for the discipline it keeps.
//!
//! The only writer of its VM's map. Everything it does is a loop of short steps, so that marks are looked at every tick
//! whatever else is going on: commands, tick (marks → stale → scan), one batch of ready pages, a piece of a job.

mod audit;
mod jobs;
mod region;
mod settle;

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use memdex_wire::{
    event::Event,
    job::{SyncReport, VerifyReport},
    page::PageState,
    vm::{IndexProgress, Tracking, Witness, WitnessStatus},
};
use roaring::RoaringBitmap;
use tokio::sync::oneshot;

use super::{
    claim::Claim,
    ebpf::{MarkLayout, MarkRegion, Marks, RamFile},
    pagemap::{Pagemap, ScanError},
    queue::{Queue, runs},
    userfault::{self, UserFault},
};
use crate::{
    host::{JobError, Shared, Status, Vm},
    map::{Change, Layout, Place},
    units::PageRange,
    vm::descriptor::{Backing, ProcessId, VmDescriptor},
};
use jobs::Job;
use region::Watched;

/// Pages settled before the marks are looked at again: 8 MiB, a few milliseconds.
const BATCH: u32 = 2048;
/// Time for a mark to be followed by its write; see [`super::queue`].
const ROTATION: Duration = Duration::from_secs(1);
/// Shortest time from laying the marks out to doing it again because KVM's memory slots moved.
const REWATCH: Duration = Duration::from_millis(500);
/// Commands waiting for one tracker.
pub(crate) const COMMANDS: usize = 64;

/// How a tracker goes about its work.
#[derive(Debug, Clone)]
pub struct TrackerOptions {
    /// Time from one look at the marks to the next.
    pub tick: Duration,
    /// Shortest time between two audits.
    pub audit: Duration,
    /// Shortest time between two scans of everything, where eBPF does not say what was written.
    pub scan: Duration,
    /// Time from one reading of a region that cannot be watched to the next.
    pub rehash: Duration,
}

impl Default for TrackerOptions {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(20),
            audit: Duration::from_secs(10),
            scan: Duration::from_millis(200),
            rehash: Duration::from_secs(30),
        }
    }
}

/// What a tracker is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Make every page current once.
    Sync { deadline: Instant, reply: oneshot::Sender<Result<SyncReport, JobError>> },
    /// Read every current page again.
    Verify { reply: oneshot::Sender<Result<VerifyReport, JobError>> },
    /// Discovery found the VM changed.
    Changed(Arc<VmDescriptor>),
    /// Look up: tracking may have been stopped.
    Wake,
}

/// Why a tracker ends.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) String);

impl Lost {
    fn ended() -> Self {
        Self("its process has ended".to_owned())
    }
}

impl From<ScanError> for Lost {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Gone => Self::ended(),
            other => Self(other.to_string()),
        }
    }
}

/// See the module.
pub(crate) struct Tracker {
    vm: Arc<Vm>,
    shared: Arc<Shared>,
    options: TrackerOptions,
    process: ProcessId,
    descriptor: Arc<VmDescriptor>,
    commands: mpsc::Receiver<Command>,
    /// Held for as long as we arm pages: two daemons arming one VM would hide its writes from each other.
    _claim: Option<Claim>,
    pagemap: Pagemap,
    userfault: Result<UserFault, String>,
    marks: Option<Marks>,
    marks_missing: Option<String>,
    regions: Vec<Watched>,
    queue: Queue,
    jobs: VecDeque<Job>,
    /// Pages not looked at since they became part of the VM.
    unseen: RoaringBitmap,
    /// Room for the changes of a batch, kept to save allocating.
    changes: Vec<Change>,
    full_scan_wanted: bool,
    /// KVM's memory slots are not those the marks were laid out for.
    slots_moved: bool,
    pass_began: Instant,
    pass_took: Option<Duration>,
    last_tick: Instant,
    last_rotation: Instant,
    last_audit: Instant,
    last_full_scan: Instant,
    last_recheck: Instant,
    last_watched: Instant,
    last_rehash: Instant,
    last_event: (Instant, u64),
    audit_cost: Duration,
    full_scan_cost: Duration,
}

impl Tracker {
    /// Attaches to a VM. What cannot be attached makes the VM advisory; only a VM that is gone is an error.
    pub(crate) fn attach(
        vm: Arc<Vm>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self, Lost> {
        let descriptor = vm.descriptor();
        let process = descriptor.process;
        let pagemap = Pagemap::open(process)?;
        let (claim, userfault) = attach_userfault(process);
        match &userfault {
            Ok(_) => tracing::info!(vm = %vm.id(), name = descriptor.name, "write protection attached"),
            Err(reason) => {
                tracing::warn!(vm = %vm.id(), name = descriptor.name, reason, "tracking is advisory")
            }
        }
        let now = Instant::now();
        let mut tracker = Self {
            options: shared.options.tracker.clone(),
            vm,
            shared,
            process,
            descriptor,
            commands,
            _claim: claim,
            pagemap,
            userfault,
            marks: None,
            marks_missing: None,
            regions: Vec::new(),
            queue: Queue::new(),
            jobs: VecDeque::new(),
            unseen: RoaringBitmap::new(),
            changes: Vec::new(),
            full_scan_wanted: false,
            slots_moved: false,
            pass_began: now,
            pass_took: None,
            last_tick: now,
            last_rotation: now,
            last_audit: now,
            last_full_scan: now,
            last_recheck: now,
            last_watched: now,
            last_rehash: now,
            last_event: (now, 0),
            audit_cost: Duration::ZERO,
            full_scan_cost: Duration::ZERO,
        };
        tracker.lay_out(0);
        Ok(tracker)
    }

    /// Runs until the VM is gone or tracking is stopped. Returns why.
    pub(crate) fn run(mut self) -> String {
        let reason = loop {
            match self.step() {
                Ok(()) => {}
                Err(Lost(reason)) => break reason,
            }
            if let Some(reason) = self.vm.stopped() {
                break reason.to_owned();
            }
        };
        self.release();
        reason
    }

    fn step(&mut self) -> Result<(), Lost> {
        let busy = self.queue.has_ready() || !self.jobs.is_empty();
        let due = self.options.tick.saturating_sub(self.last_tick.elapsed());
        let wait = if busy { Duration::ZERO } else { due };
        match self.commands.recv_timeout(wait) {
            Ok(Command::Sync { deadline, reply }) => self.begin_sync(deadline, reply)?,
            Ok(Command::Verify { reply }) => self.begin_verify(reply),
            Ok(Command::Changed(descriptor)) => self.changed(descriptor),
            Ok(Command::Wake) | Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
        }
        if self.last_tick.elapsed() >= self.options.tick {
            self.tick()?;
        }
        let worked = self.settle_ready()?;
        let more = self.work_on_jobs()?;
        if !worked && !more && !self.jobs.is_empty() {
            // A sync waits for a discard to return or a write to land: that takes microseconds, not a tick.
            std::thread::sleep(Duration::from_millis(1));
            self.take_marks();
            self.scan()?;
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Lost> {
        self.last_tick = Instant::now();
        self.queue.tick();
        if self.last_rotation.elapsed() >= ROTATION {
            self.last_rotation = Instant::now();
            self.queue.rotate();
            self.vm.counters.hot_pages.set(self.queue.hot());
        }
        self.take_marks();
        if self.slots_moved && self.last_watched.elapsed() >= REWATCH {
            self.slots_moved = false;
            self.watch_marks();
            self.full_scan_wanted = true;
        }
        self.scan()?;
        if self.last_audit.elapsed() >= self.audit_interval() {
            self.audit()?;
            self.last_audit = Instant::now();
            self.vm.map_mut().compact();
        }
        if self.last_rehash.elapsed() >= self.options.rehash {
            self.last_rehash = Instant::now();
            for watched in self.regions.iter().filter(|watched| watched.readable() && !watched.armed()) {
                self.queue.ready_run(watched.range());
            }
        }
        self.vm.note_unanswered(!self.queue.awaited().is_empty());
        if !self.unseen.is_empty() || self.pass_took.is_none() {
            self.note_progress();
        }
        self.announce();
        Ok(())
    }

    /// Says how far the first pass is.
    fn note_progress(&mut self) {
        let left = self.unseen.len();
        if left > 0 {
            self.pass_took = None;
        } else if self.pass_took.is_none() {
            self.pass_took = Some(self.pass_began.elapsed());
        }
        let total = u64::from(self.vm.map().pages());
        let elapsed_ms = self.pass_took.unwrap_or_else(|| self.pass_began.elapsed()).as_millis() as u64;
        self.vm.set_progress(IndexProgress { done: total - left, total, elapsed_ms });
    }

    /// Takes what eBPF has seen since the last time: stale from now on.
    fn take_marks(&mut self) {
        let Some(marks) = &mut self.marks else {
            // Nobody tells of discards, so none is known to be in flight.
            self.queue.discards_done();
            return;
        };
        let (mut written, mut discarded) = (Vec::new(), Vec::new());
        let taken = marks.take(&mut written, &mut discarded);
        // Marks of a layout that has just been replaced may name pages that are no more.
        let pages = self.vm.map().pages();
        for run in written.iter_mut().chain(&mut discarded) {
            *run = run.start.min(pages)..run.end.min(pages);
        }
        if !written.is_empty() || !discarded.is_empty() {
            let newly = {
                let mut map = self.vm.map_mut();
                map.mark_stale(&written) + map.mark_stale(&discarded)
            };
            self.vm.counters.pages_gone_stale.add(newly);
            let count = |runs: &[PageRange]| runs.iter().map(|run| run.len() as u64).sum();
            self.vm.counters.marks_written.add(count(&written));
            self.vm.counters.marks_discarded.add(count(&discarded));
        }
        for run in written {
            self.queue.marked(run);
        }
        for run in discarded {
            self.queue.discarding(run);
        }
        self.slots_moved |= taken.layout_stale;
        if taken.overflowed {
            self.vm.counters.mark_overflows.add(1);
            self.full_scan_wanted = true;
        }
        if taken.discards_overflowed {
            self.vm.counters.mark_overflows.add(1);
            self.everything_discarded();
        }
        if self.queue.awaits_discards() && self.marks.as_ref().is_none_or(Marks::discards_quiescent) {
            self.queue.discards_done();
        }
    }

    /// A discard that could not be told to pages: every page may have been thrown away.
    fn everything_discarded(&mut self) {
        for region in 0..self.regions.len() {
            let range = self.regions[region].range();
            self.stale_run(&range);
            self.queue.discarding(range);
        }
    }

    /// Settles one batch of ready pages. Returns whether there was one.
    fn settle_ready(&mut self) -> Result<bool, Lost> {
        if !self.queue.has_ready() {
            return Ok(false);
        }
        let mut batch = self.queue.take(BATCH);
        let mut rest = RoaringBitmap::new();
        let Some(first) = batch.min() else { return Ok(true) };
        let region = self.region_of(first);
        let end = self.regions[region].range().end;
        if batch.max().is_some_and(|last| last >= end) {
            rest |= &batch;
            rest.remove_range(..end);
            batch.remove_range(end..);
        }
        self.queue.ready(&rest);
        if self.regions[region].armed() {
            // What became current in the meantime (a sync, a page queued twice) need not be read again.
            let (from, to) = (first, batch.max().map_or(first, |last| last + 1));
            batch &= self.vm.snapshot().in_state(from..to, &[PageState::Stale]);
        }
        if batch.is_empty() || !self.regions[region].readable() {
            return Ok(true);
        }
        let unsettled = self.settle(region, &batch)?;
        // What was written meanwhile has been queued by the scan; what was only marked waits for its write, which
        // the next look at the marks says. What could not be armed at all is tried again.
        if !unsettled.is_empty() {
            let unqueued = unsettled - self.queue.all();
            for run in runs(&unqueued) {
                self.queue.marked(run);
            }
        }
        Ok(true)
    }

    fn region_of(&self, page: u32) -> usize {
        let after = self.regions.partition_point(|region| region.first_page <= page);
        after.saturating_sub(1)
    }

    fn stale_run(&mut self, run: &PageRange) {
        let newly = self.vm.map_mut().mark_stale(std::slice::from_ref(run));
        self.vm.counters.pages_gone_stale.add(newly);
    }

    /// Whether eBPF tells of every write that takes a fault, so that scans need to look only where it points.
    fn marks_see_writes(&self) -> bool {
        self.marks.is_some() && self.shared.hooks.faults_attached()
    }

    /// Keeps the reverse index in step with the map.
    fn follow(&self, changes: &[Change]) {
        for change in changes {
            let place = Place { map: self.vm.map_id(), page: change.page };
            if let Some(before) = &change.before {
                self.shared.index.remove(before, place);
            }
            if let Some(after) = &change.after {
                self.shared.index.insert(after, place);
            }
        }
    }

    fn report_mismatch(&self, region: usize, page: u32, state: PageState) {
        let watched = &self.regions[region];
        self.vm.counters.mismatches.add(1);
        tracing::error!(
            vm = %self.vm.id(), region = watched.region.name, page, ?state,
            "a page differs from what the map says and nobody saw it written; it is stale now"
        );
        self.shared.announce(Event::Mismatch { vm: self.vm.id().to_owned(), page: u64::from(page) });
    }

    /// Discovery found the VM changed: keep what is the same, begin anew with the rest.
    fn changed(&mut self, descriptor: Arc<VmDescriptor>) {
        let same = self
            .regions
            .iter()
            .zip(&descriptor.regions)
            .take_while(|(old, new)| old.region == **new && old.readable())
            .count();
        let relaid = same < self.regions.len() || same < descriptor.regions.len();
        let slots = self.descriptor.memslots != descriptor.memslots;
        self.descriptor = descriptor;
        if relaid {
            self.abandon_jobs();
            self.lay_out(same);
            self.shared.announce(Event::LayoutChanged {
                vm: self.vm.id().to_owned(),
                pages: u64::from(self.vm.map().pages()),
            });
        } else if slots {
            self.watch_marks();
        }
        self.update_status();
    }

    /// Opens all regions from the `keep`-th on and numbers their pages.
    fn lay_out(&mut self, keep: usize) {
        if let Ok(userfault) = &self.userfault {
            for gone in self.regions.iter().skip(keep).filter(|gone| gone.armed()) {
                // The mapping may be gone with its registration; then there is nothing to undo.
                let _ = userfault.unregister(gone.region.start..gone.region.end());
            }
        }
        self.regions.truncate(keep);
        let layout = Arc::new(Layout::of(&self.descriptor.regions));
        let kept = self.regions.last().map_or(0, |last| last.range().end);
        for (region, place) in self.descriptor.regions.iter().zip(layout.regions()).skip(keep) {
            let userfault = self.userfault.as_ref().map_err(String::as_str);
            self.regions.push(Watched::open(self.process, region.clone(), place.first_page, userfault));
        }
        let pages = layout.pages();
        let changes = self.vm.map_mut().relayout(layout, kept);
        self.follow(&changes);
        if self.unseen.is_empty() {
            self.pass_began = Instant::now();
        }
        self.unseen.remove_range(kept..);
        self.unseen.insert_range(kept..pages);
        self.queue.clear();
        self.watch_marks();
        // A discard that entered under the old numbers may still be on its way to pages that have new ones.
        for watched in self.regions.iter().skip(keep) {
            self.queue.discarding(watched.range());
        }
        self.full_scan_wanted = true;
        let stale = self.vm.snapshot().in_state(0..u32::MAX, &[PageState::Stale]);
        self.queue.ready(&stale);
        self.update_status();
        self.share_memory();
    }

    /// (Re)starts the eBPF marks with the regions and memslots as they are now.
    fn watch_marks(&mut self) {
        let regions = self.regions.iter().map(|watched| MarkRegion {
            start: watched.region.start,
            len: watched.region.len,
            first_page: watched.first_page,
            file: match watched.region.backing {
                Backing::SharedFile { device, inode, offset, .. } => Some(RamFile { device, inode, offset }),
                Backing::PrivateFile { .. } | Backing::Anonymous => None,
            },
        });
        let layout = MarkLayout {
            regions: regions.collect(),
            memslots: self.descriptor.memslots.clone(),
            pages: self.vm.map().pages(),
        };
        match self.shared.hooks.track(self.process.pid, &layout) {
            Ok(marks) => {
                // The old marks have been kept until the new ones were in place, so no event fell between them.
                self.take_marks();
                (self.marks, self.marks_missing) = (Some(marks), None);
            }
            Err(error) => {
                tracing::debug!(vm = %self.vm.id(), %error, "no eBPF marks");
                self.take_marks();
                self.marks_missing = Some(error.to_string());
                if self.marks.take().is_some() {
                    // Whatever is being thrown away right now, nobody will tell us when it is done.
                    self.everything_discarded();
                    self.queue.discards_done();
                }
            }
        }
        self.last_watched = Instant::now();
    }

    fn update_status(&mut self) {
        let mut reasons = self.descriptor.doubts.clone();
        for watched in &self.regions {
            let coverage = watched.coverage();
            if let Some(reason) = coverage.reason {
                let reason = format!("region {}: {reason}", coverage.region);
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
        if self.regions.is_empty() {
            reasons.push("no guest memory was found in this process".to_owned());
        }
        if self.userfault.is_ok() && (self.marks.is_none() || !self.shared.hooks.discards_attached()) {
            reasons.push(
                "discarded memory (balloon) is only noticed late: the eBPF hooks on discards are not attached".to_owned(),
            );
        }
        let tracking = if reasons.is_empty() { Tracking::Exact } else { Tracking::Advisory };
        let status = Status {
            tracking,
            reasons: reasons.clone(),
            witnesses: self.witnesses(),
            coverage: self.regions.iter().map(Watched::coverage).collect(),
        };
        if self.vm.set_status(status) {
            self.shared.announce(Event::TrackingChanged { vm: self.vm.id().to_owned(), tracking, reasons });
        }
    }

    fn witnesses(&self) -> Vec<Witness> {
        let witness = |name: &str, reason: Option<&str>| Witness {
            name: name.to_owned(),
            status: if reason.is_none() { WitnessStatus::Active } else { WitnessStatus::Unavailable },
            reason: reason.map(str::to_owned),
        };
        let mut witnesses = vec![witness("write-protect", self.userfault.as_ref().err().map(String::as_str))];
        for hook in self.shared.hooks.status() {
            let reason = hook.reason.as_deref().or(self.marks_missing.as_deref());
            witnesses.push(witness(hook.name, reason));
        }
        if self.regions.iter().any(|watched| watched.readable() && !watched.armed()) {
            witnesses.push(witness("rehash", None));
        }
        witnesses
    }

    /// Lets readers of content at the regions as they are now.
    fn share_memory(&self) {
        let memory = self.regions.iter().filter_map(|watched| {
            let memory = watched.memory.clone().filter(|_| watched.readable())?;
            Some((watched.range(), memory))
        });
        self.vm.set_memory(memory.collect());
    }

    /// Tells the world at most once a second that the map moved on.
    fn announce(&mut self) {
        let (last, told) = self.last_event;
        if last.elapsed() < Duration::from_secs(1) {
            return;
        }
        let (generation, pages) = {
            let map = self.vm.map();
            (map.generation().0, map.counts())
        };
        if generation != told {
            self.last_event = (Instant::now(), generation);
            self.shared.announce(Event::MapChanged { vm: self.vm.id().to_owned(), generation, pages });
        }
    }

    /// Leaves the VMM without our protection: no write of its guest costs a fault because of us any more.
    fn release(&mut self) {
        self.abandon_jobs();
        if let Ok(userfault) = &self.userfault {
            for watched in self.regions.iter().filter(|watched| watched.armed()) {
                let _ = userfault.unregister(watched.region.start..watched.region.end());
            }
        }
    }
}

fn attach_userfault(process: ProcessId) -> (Option<Claim>, Result<UserFault, String>) {
    if let Err(error) = Pagemap::probe() {
        return (None, Err(error.to_string()));
    }
    let claim = match Claim::take(process) {
        Ok(claim) => claim,
        Err(error) => return (None, Err(error.to_string())),
    };
    match userfault::attach(process) {
        Ok(userfault) => (Some(claim), Ok(userfault)),
        Err(error) => (Some(claim), Err(error.to_string())),
    }
}
