//! One VM as readers see it.

mod memory;

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use memdex_wire::{
    PAGE_SIZE,
    job::{SyncReport, VerifyReport},
    page::PageState,
    vm::{IndexProgress, Tracking, VmInfo},
};
use tokio::sync::oneshot;

use super::{
    haste::Hurried,
    status::{Freshness, GuestShare, Status, milliseconds},
};
use crate::{
    map::{Layout, MapId, MapSnapshot, PageMap},
    memory::RegionMemory,
    metrics::{AuditCounters, VmCounters},
    units::{Generation, PageRange, bytes},
    vm::{
        descriptor::{ProcessId, VmDescriptor},
        printable,
    },
    watch::{tracker::Command, unsettled::Looks},
};

/// Why a job has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The VM ended.
    #[error("the VM has ended")]
    Gone,
    /// It took too long.
    #[error("it was not done in time: give it longer, or look at the VM's `stale` count")]
    Timeout,
    /// Too many jobs wait for this VM.
    #[error("too many jobs wait for this VM: try again in a moment")]
    Busy,
    /// The pages were numbered anew.
    #[error("the VM's memory layout changed meanwhile: try again")]
    Changed,
    /// A migration fills the VM's memory.
    #[error("the VM's memory is just being received from another host: try again when the migration is done")]
    Receiving,
}

/// Memory of the regions by their page numbers.
type Memory = Vec<(PageRange, Arc<RegionMemory>)>;

/// One VM: what is known of it, and how to ask its tracker for more.
#[derive(Debug)]
pub struct Vm {
    id: String,
    name: String,
    process: ProcessId,
    map_id: MapId,
    descriptor: RwLock<Arc<VmDescriptor>>,
    /// Written by the tracker alone, for microseconds at a time; std's lock is enough.
    map: RwLock<PageMap>,
    status: RwLock<Status>,
    memory: RwLock<Memory>,
    progress: Mutex<IndexProgress>,
    freshness: Mutex<Freshness>,
    guest_share: Mutex<GuestShare>,
    /// Who waits for the map, whatever it costs the guest.
    pub(crate) hurried: Hurried,
    /// Looks at the VMM's open files.
    direct_io: Mutex<Looks>,
    commands: mpsc::SyncSender<Command>,
    /// Figures for `/metrics`.
    pub counters: VmCounters,
    /// Figures of the content audit.
    pub audit: AuditCounters,
    stop: OnceLock<&'static str>,
    /// Its memory is being filled by a migration.
    receiving: AtomicBool,
    /// It runs on another host now.
    moved_away: AtomicBool,
}

impl Vm {
    pub(super) fn new(
        descriptor: Arc<VmDescriptor>,
        map_id: MapId,
        commands: mpsc::SyncSender<Command>,
    ) -> Self {
        let layout = Arc::new(Layout::of(&descriptor.regions));
        let now = Instant::now();
        Self {
            id: descriptor.id(),
            name: descriptor.name.clone(),
            process: descriptor.process,
            map_id,
            status: RwLock::new(Status::beginning(&layout)),
            map: RwLock::new(PageMap::unread(layout)),
            memory: RwLock::default(),
            progress: Mutex::new(IndexProgress { total: descriptor.pages(), ..IndexProgress::default() }),
            direct_io: Mutex::new(Looks {
                found: descriptor.direct_io.is_some().then(Instant::now),
                none: None,
            }),
            descriptor: RwLock::new(descriptor),
            freshness: Mutex::new(Freshness { as_of: now, oldest_mark: None, audited: now }),
            guest_share: Mutex::default(),
            hurried: Hurried::default(),
            commands,
            counters: VmCounters::default(),
            audit: AuditCounters::default(),
            stop: OnceLock::new(),
            receiving: AtomicBool::new(false),
            moved_away: AtomicBool::new(false),
        }
    }

    /// Names the VM on this host.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The VMM's process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// Names the VM's map in the reverse index.
    #[must_use]
    pub fn map_id(&self) -> MapId {
        self.map_id
    }

    /// What discovery last said.
    #[must_use]
    pub fn descriptor(&self) -> Arc<VmDescriptor> {
        Arc::clone(&self.descriptor.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts the changes of the map.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.map().generation()
    }

    /// A consistent picture of the map.
    #[must_use]
    pub fn snapshot(&self) -> MapSnapshot {
        self.map().snapshot()
    }

    /// Whether `current` can be relied on.
    #[must_use]
    pub fn tracking(&self) -> Tracking {
        self.status.read().unwrap_or_else(PoisonError::into_inner).tracking
    }

    /// How it is watched, and why not better.
    pub(crate) fn status(&self) -> Status {
        let status = self.status.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (pages, layout) = {
            let map = self.map();
            (map.pages(), Arc::clone(map.layout()))
        };
        if status.covers(u64::from(pages)) { status } else { Status::beginning(&layout) }
    }

    /// Everything the API says of the VM.
    #[must_use]
    pub fn info(&self) -> VmInfo {
        let descriptor = self.descriptor();
        // Before what follows from it, and before the map: neither is to look better than it is.
        let (mismatches, freshness) = (self.counters.mismatches.get(), self.freshness());
        let mut status = self.status.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (generation, pages, layout) = {
            let map = self.map();
            (map.generation().0, map.counts(), Arc::clone(map.layout()))
        };
        if !status.covers(pages.total) {
            status = Status::beginning(&layout);
        }
        let guest_share = *self.guest_share.lock().unwrap_or_else(PoisonError::into_inner);
        VmInfo {
            id: self.id.clone(),
            name: self.name.clone(),
            uuid: descriptor.uuid.clone(),
            pid: self.process.pid,
            vmm: descriptor.vmm.clone(),
            accelerator: descriptor.accelerator.name().to_owned(),
            memory_bytes: bytes(pages.total),
            page_size: PAGE_SIZE as u32,
            generation,
            tracking: status.tracking,
            advisory_reasons: status.reasons,
            direct_io: descriptor.direct_io.as_deref().map(printable),
            witnesses: status.witnesses,
            coverage: status.coverage,
            pages,
            indexed: *self.progress.lock().unwrap_or_else(PoisonError::into_inner),
            staleness_ms: freshness.staleness_ms(),
            oldest_mark_ms: freshness.oldest_mark_ms(),
            audit_age_ms: milliseconds(freshness.audited),
            missed_by_ebpf: self.counters.missed_by_ebpf.get(),
            missed_by_scan: self.counters.missed_by_scan.get(),
            mismatches,
            audit_checked: self.audit.checked.get(),
            guest_cost_ppm: guest_share.paid_ppm,
            guest_budget_ppm: guest_share.budget_ppm,
            picked_up: self.counters.pages_picked_up.get(),
        }
    }

    /// Waits until every page has been current once since the call; hot pages count as of the call.
    ///
    /// # Errors
    /// If the VM ends or the time is up.
    pub async fn sync(&self, timeout: Duration) -> Result<SyncReport, JobError> {
        let deadline = Instant::now() + timeout;
        // The tracker minds the deadline itself; the extra second is for one that cannot answer at all.
        self.ask(timeout + Duration::from_secs(1), |reply| Command::Sync { deadline, still: false, reply })
            .await
    }

    /// The same for a guest that stands still, whose VMM has drained its I/O: no write is waited for any more.
    ///
    /// # Errors
    /// If the VM ends or the time is up.
    pub(crate) async fn sync_still(&self, timeout: Duration) -> Result<SyncReport, JobError> {
        let deadline = Instant::now() + timeout;
        self.ask(timeout + Duration::from_secs(1), |reply| Command::Sync { deadline, still: true, reply })
            .await
    }

    /// Before all direct I/O of the VMM is made to come to an end: see [`Self::drained`].
    ///
    /// # Errors
    /// If the VM ends, or its tracker is very busy.
    pub(crate) async fn close_unsettled(&self) -> Result<Instant, JobError> {
        self.ask(Duration::from_secs(10), |reply| Command::CloseUnsettled { reply }).await
    }

    /// After `close_unsettled` gave `mark`, there was a moment at which no direct I/O was under way. Returns when all pages that were published before have
    /// been read once more.
    ///
    /// # Errors
    /// If the VM ends or the time is up.
    pub(crate) async fn drained(&self, mark: Instant, timeout: Duration) -> Result<(), JobError> {
        self.ask(timeout, |reply| Command::Drained { mark, reply }).await
    }

    /// Reads every current page again and compares.
    ///
    /// # Errors
    /// If the VM ends.
    pub async fn verify(&self, timeout: Duration) -> Result<VerifyReport, JobError> {
        self.ask(timeout, |reply| Command::Verify { reply }).await
    }

    async fn ask<T>(
        &self,
        timeout: Duration,
        command: impl FnOnce(oneshot::Sender<Result<T, JobError>>) -> Command,
    ) -> Result<T, JobError> {
        let (sender, answer) = oneshot::channel();
        self.commands.try_send(command(sender)).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => JobError::Busy,
            mpsc::TrySendError::Disconnected(_) => JobError::Gone,
        })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(JobError::Gone),
            Err(_) => Err(JobError::Timeout),
        }
    }

    /// Makes the tracker stand aside: somebody else fills this VM's memory. Returns when it has.
    pub(crate) async fn stand_aside(&self, timeout: Duration) -> Result<(), JobError> {
        self.receiving.store(true, Relaxed);
        let stood = self.ask(timeout, |reply| Command::StandAside { reply }).await;
        if stood.is_err() {
            self.come_back();
        }
        stood
    }

    /// Lets the tracker go on; it reads everything anew.
    pub(crate) fn come_back(&self) {
        self.receiving.store(false, Relaxed);
        let _ = self.commands.try_send(Command::Wake);
    }

    /// Whether this VM's memory is being filled by somebody else.
    pub(crate) fn receiving(&self) -> bool {
        self.receiving.load(Relaxed)
    }

    /// Says that this VM now runs on another host: what it leaves behind is kept.
    pub(crate) fn set_moved_away(&self) {
        self.moved_away.store(true, Relaxed);
    }

    pub(crate) fn moved_away(&self) -> bool {
        self.moved_away.load(Relaxed)
    }

    pub(super) fn changed(&self, descriptor: Arc<VmDescriptor>) {
        // If the tracker is too busy to hear of it now, the next sweep finds the difference again.
        if self.commands.try_send(Command::Changed(Arc::clone(&descriptor))).is_ok() {
            *self.descriptor.write().unwrap_or_else(PoisonError::into_inner) = descriptor;
        }
    }

    /// Ends tracking. The word is kept here; the command only wakes the tracker, and may find the queue full.
    pub(super) fn stop(&self, reason: &'static str) {
        let _ = self.stop.set(reason);
        let _ = self.commands.try_send(Command::Wake);
    }

    /// Why tracking is to end or has ended, if so.
    pub(crate) fn stopped(&self) -> Option<&'static str> {
        self.stop.get().copied()
    }

    pub(crate) fn map(&self) -> RwLockReadGuard<'_, PageMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn map_mut(&self) -> RwLockWriteGuard<'_, PageMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a page has been written since it was read, or was not read yet.
    pub(crate) fn is_stale(&self, page: u32) -> bool {
        let map = self.map();
        page >= map.pages() || map.page(page).held == PageState::Stale
    }

    /// Returns whether tracking became exact or advisory.
    pub(crate) fn set_status(&self, status: Status) -> bool {
        let mut held = self.status.write().unwrap_or_else(PoisonError::into_inner);
        let turned = held.tracking != status.tracking;
        *held = status;
        turned
    }

    pub(crate) fn set_progress(&self, progress: IndexProgress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    pub(crate) fn set_freshness(&self, freshness: Freshness) {
        *self.freshness.lock().unwrap_or_else(PoisonError::into_inner) = freshness;
    }

    pub(crate) fn set_guest_share(&self, share: GuestShare) {
        *self.guest_share.lock().unwrap_or_else(PoisonError::into_inner) = share;
    }

    /// When the witnesses were last asked. To be taken before the map that it is to be shown with.
    pub(crate) fn freshness(&self) -> Freshness {
        *self.freshness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that discovery began to look at the VMM's open files at this time, and whether it found any for direct I/O.
    pub(super) fn note_direct_io(&self, at: Instant, found: bool) {
        let mut looks = self.direct_io.lock().unwrap_or_else(PoisonError::into_inner);
        *if found { &mut looks.found } else { &mut looks.none } = Some(at);
    }

    /// What those looks found.
    pub(crate) fn direct_io_looks(&self) -> Looks {
        *self.direct_io.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
