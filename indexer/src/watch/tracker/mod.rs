//! The tracker: one thread for each VM that keeps its map true. See [`crate::watch`] for the discipline it keeps.
//!
//! The only writer of its VM's map. Everything it does is a loop of short steps, so that marks are looked at every tick
//! whatever else is going on: commands, tick (marks → stale → scan), one batch of ready pages, a piece of a job.

mod aside;
mod audit;
mod check;
mod command;
mod content;
mod digest;
mod foreign;
mod inherit;
mod jobs;
mod layout;
mod marks;
mod options;
mod pay;
mod region;
mod ring;
mod settle;
mod staleness;
mod status;
mod trouble;
mod unsettled;
mod whole;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::{Duration, Instant},
};

use roaring::RoaringBitmap;
use tokio::sync::oneshot;

use super::{
    claim::Claim,
    cost::GuestCost,
    ebpf::{LeftOut, Marks},
    pagemap::{Pagemap, ScanError},
    protection::Protection,
    protocol::FullScan,
    queue::Queue,
    unsettled::Unsettled,
    witnesses::LEFT_OUT,
};
use crate::{
    host::{JobError, Shared, Vm},
    map::Change,
    vm::descriptor::{ProcessId, VmDescriptor},
};
pub(crate) use command::Command;
pub use options::TrackerOptions;

use check::{Distrust, History};
use content::ContentAudit;
use jobs::Job;
use pay::begin_to_pay;
use region::Watched;
use staleness::Looks;
use whole::Whole;

/// Time for a mark to be followed by its write; see [`super::queue`].
const ROTATION: Duration = Duration::from_secs(1);
/// Shortest time from laying the marks out to doing it again because KVM's memory slots moved.
const REWATCH: Duration = Duration::from_millis(500);
/// Where writes can go unseen everything is read again, but so seldom that it takes a tenth of the hashing threads' time at most.
const REHASH_PAUSE: u32 = 10;
/// Time after which what did not work is tried again; it doubles each time, up to [`TRY_AT_LEAST`].
const TRY_AGAIN: Duration = Duration::from_secs(1);
const TRY_AT_LEAST: Duration = Duration::from_secs(3600);
/// Time after which what was tried again counts as working.
const WELL_AFTER: Duration = Duration::from_secs(600);
/// Commands waiting for one tracker.
pub(crate) const COMMANDS: usize = 64;

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
    claim: Option<Claim>,
    pagemap: Pagemap,
    protection: Result<Protection, String>,
    whole: Whole,
    marks: Option<Marks>,
    marks_missing: Option<String>,
    /// How often programs had been left out when the marks were last taken.
    left_out: LeftOut,
    /// The beginning or the end of a call that discards memory was not counted: the count is to begin anew.
    calls_lost: bool,
    regions: Vec<Watched>,
    queue: Queue,
    cost: GuestCost,
    unsettled: Unsettled,
    /// Who waits until no page is due to be read once more.
    await_settling: Vec<oneshot::Sender<Result<(), JobError>>>,
    jobs: VecDeque<Job>,
    contents: ContentAudit,
    looks: Looks,
    history: History,
    /// Pages have changed unseen: nothing here is believed any more.
    distrust: Option<Distrust>,
    /// eBPF saw another process map a RAM file writable then; see [`foreign`].
    foreign: Option<(Instant, u64)>,
    /// Pages pushed into KVM's dirty ring and not known to be reset since; see [`ring`].
    pushed: RoaringBitmap,
    /// Pages not looked at since they became part of the VM.
    unseen: RoaringBitmap,
    /// Room for the changes of a batch, kept to save allocating.
    changes: Vec<Change>,
    full_scan: FullScan,
    /// Somebody else fills the memory; see [`aside`].
    aside: bool,
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
    last_try: Instant,
    try_after: Duration,
    last_event: (Instant, u64),
    audit_cost: Duration,
    full_scan_cost: Duration,
    recheck_cost: Duration,
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
        let (claim, protection, left) = inherit::begin(&shared, &descriptor);
        match &protection {
            Ok(Protection::UserFault(_)) => {
                tracing::info!(vm = %vm.id(), name = descriptor.name, "write protection attached");
            }
            Ok(Protection::SoftDirty(..)) => {
                tracing::info!(vm = %vm.id(), name = descriptor.name, "writes are tracked by soft-dirty bits");
            }
            Err(reason) => {
                tracing::warn!(vm = %vm.id(), name = descriptor.name, reason, "tracking is advisory");
            }
        }
        let now = Instant::now();
        let unsettled = Unsettled::new(shared.options.tracker.settle, now);
        let cost = begin_to_pay(&shared, &descriptor, protection.as_ref().ok(), now);
        let (_, left_out) = shared.hooks.left_out();
        let whole = Whole::new(shared.hooks.cleared_by_others());
        let mut tracker = Self {
            options: shared.options.tracker.clone(),
            vm,
            shared,
            process,
            descriptor,
            commands,
            claim,
            pagemap,
            protection,
            whole,
            marks: None,
            marks_missing: None,
            left_out,
            calls_lost: false,
            regions: Vec::new(),
            queue: Queue::new(),
            cost,
            unsettled,
            await_settling: Vec::new(),
            jobs: VecDeque::new(),
            contents: ContentAudit::new(now),
            looks: Looks::new(now),
            history: History::default(),
            distrust: None,
            foreign: None,
            pushed: RoaringBitmap::new(),
            unseen: RoaringBitmap::new(),
            changes: Vec::new(),
            full_scan: FullScan::default(),
            aside: false,
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
            last_try: now,
            try_after: TRY_AGAIN,
            last_event: (now, 0),
            audit_cost: Duration::ZERO,
            full_scan_cost: Duration::ZERO,
            recheck_cost: Duration::ZERO,
        };
        match left {
            Some(left) => tracker.go_on(left),
            None => tracker.begin_anew(),
        }
        // Who has mapped the RAM since discovery looked, and before the hooks saw this VM, is found by the next sweep.
        tracker.shared.mappings_changed.store(true, Relaxed);
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
        if self.vm.receiving() {
            self.step_aside();
            return Ok(());
        }
        if self.aside {
            self.come_back();
        }
        let busy = self.queue.has_ready() || self.unsettled.has_due() || !self.jobs.is_empty();
        let due = self.options.tick.saturating_sub(self.last_tick.elapsed());
        let wait = if busy { Duration::ZERO } else { due };
        match self.commands.recv_timeout(wait) {
            Ok(Command::Sync { deadline, still, reply }) => self.begin_sync(deadline, still, reply)?,
            Ok(Command::Verify { reply }) => self.begin_verify(reply),
            Ok(Command::CloseUnsettled { reply }) => {
                let now = Instant::now();
                self.unsettled.close(now);
                let _ = reply.send(Ok(now));
            }
            Ok(Command::Drained { mark, reply }) => {
                self.unsettled.drained(mark);
                self.await_settling.push(reply);
            }
            Ok(Command::Changed(descriptor)) => self.changed(descriptor),
            Ok(Command::StandAside { reply }) => {
                self.stand_aside(reply);
                return Ok(());
            }
            Ok(Command::Wake) | Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
        }
        if self.last_tick.elapsed() >= self.options.tick {
            self.tick()?;
        }
        // A sync settles every stale page itself; chasing hot pages beside it would only take its time.
        let syncing = self.jobs.iter().any(|job| matches!(job, Job::Sync(_)));
        let worked = if syncing { false } else { self.settle_ready()? | self.settle_due()? };
        let mut more = self.work_on_jobs()?;
        while syncing && more && !self.jobs.is_empty() && self.last_tick.elapsed() < self.options.tick {
            more = self.work_on_jobs()?;
        }
        if !worked && !more && !self.jobs.is_empty() {
            // A sync waits for a discard to return or a write to land: that takes microseconds, not a tick.
            std::thread::sleep(Duration::from_millis(1));
            self.take_marks();
            self.scan(false)?;
        }
        self.audit_contents()
    }

    fn tick(&mut self) -> Result<(), Lost> {
        self.last_tick = Instant::now();
        self.queue.tick();
        self.tick_unsettled();
        self.take_marks();
        self.tick_budget();
        self.tick_foreign();
        if self.slots_moved && self.last_watched.elapsed() >= REWATCH {
            self.slots_moved = false;
            self.watch_marks();
            self.update_status();
            self.full_scan.want();
        }
        // A rotation drops pages from those that are scanned again: each gets its last look before.
        let rotating = self.last_rotation.elapsed() >= ROTATION;
        self.scan(rotating)?;
        if rotating {
            self.last_rotation = Instant::now();
            self.rotate();
        }
        self.arm_whole_when_due()?;
        if self.last_audit.elapsed() >= self.audit_interval() {
            self.audit()?;
            self.last_audit = Instant::now();
            self.vm.map_mut().compact();
        }
        if self
            .pass_took
            .is_some_and(|took| self.last_rehash.elapsed() >= self.options.rehash.max(took * REHASH_PAUSE))
        {
            self.last_rehash = Instant::now();
            if self.doubted() {
                self.read_again();
            }
            for watched in self.regions.iter().filter(|watched| watched.readable() && !watched.armed()) {
                self.queue.ready_run(watched.range());
            }
            self.begin_reading();
        }
        let lame = self.protection.is_err() || self.regions.iter().any(|watched| !watched.readable());
        if !lame {
            // One bad page of memory loses a region each time that reading comes to it, which may be some minutes after it was opened anew.
            if self.last_try.elapsed() >= WELL_AFTER {
                self.try_after = TRY_AGAIN;
            }
        } else if self.last_try.elapsed() >= self.try_after {
            self.try_again();
            // Where it never works it shall not be asked for all the time: asking stops a thread of the VMM.
            self.last_try = Instant::now();
            self.try_after = (self.try_after * 2).min(TRY_AT_LEAST);
        }
        self.note_freshness();
        if !self.unseen.is_empty() || self.pass_took.is_none() {
            self.note_progress();
        }
        self.announce();
        Ok(())
    }

    /// About a second has passed.
    fn rotate(&mut self) {
        let unanswered = self.queue.rotate();
        self.full_scan.rotate();
        self.looks.rotated();
        let armed = self.regions.iter().filter(|watched| watched.armed());
        let unseen: u64 = armed.map(|watched| unanswered.range_cardinality(watched.range())).sum();
        self.vm.counters.missed_by_scan.add(unseen);
        self.vm.counters.hot_pages.set(self.queue.hot());
        let vms = self.shared.registry.count().max(1);
        self.contents.set_share(self.options.audit_share / vms as f64);
    }

    /// Leaves the map and the protection to the next daemon if this one ends. Else leaves the VMM without our protection: no write of its
    /// guest costs a fault because of us any more.
    fn release(&mut self) {
        // Somebody may have mapped the RAM since the last tick; the next daemon has to hear of it.
        self.take_marks();
        self.abandon_jobs(JobError::Gone);
        // What discovery has found out since counts too.
        self.tick_unsettled();
        if self.leave_behind() {
            return;
        }
        if let Ok(protection) = &self.protection {
            for watched in self.regions.iter().filter(|watched| watched.armed()) {
                let _ = protection.unregister(watched.region.start..watched.region.end());
            }
        }
    }
}

/// The claim on a VM, and its protection if there can be any.
fn attach_protection(process: ProcessId, shared: &Shared) -> (Option<Claim>, Result<Protection, String>) {
    if !shared.options.tracker.write_protect {
        return (None, Err(LEFT_OUT.to_owned()));
    }
    let claim = match Claim::take(process) {
        Ok(claim) => claim,
        Err(error) => return (None, Err(error.to_string())),
    };
    (Some(claim), Protection::attach(process, &shared.hooks))
}
