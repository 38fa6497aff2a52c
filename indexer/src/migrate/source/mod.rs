//! The source: a running VM is copied, stopped, handed over.
//!
//! Owns the life of an outgoing migration. The first words are [`connect`]'s, the rounds [`rounds`]', what is sent in them [`copy`]'s and
//! [`stream`]'s, the time in which the guest stands still [`switch_over`]'s, and what becomes of it in the end [`hand_over`]'s. What has been done to it at any moment is
//! in [`reins`].

mod checks;
mod connect;
mod copy;
mod hand_over;
mod plan;
mod reins;
mod rounds;
mod stream;
mod switch_over;
mod throttle;

use std::{
    collections::HashSet,
    fmt::Display,
    sync::{
        Arc, Mutex as SyncMutex,
        atomic::{AtomicU8, AtomicU64},
    },
    time::Duration,
};

use futures::future::join_all;
use memdex_wire::{
    migration::{AtSource, MigrationCheck, MigrationRequest, OnNoConverge, Outcome, Phase},
    transfer::Namer,
    vm::Tracking,
};
use migrate_client::{ChannelKind, Client, ClientError};
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    guard::{Guard, Orders, Step},
    link::{Counted, LinkError},
    monitor::{Monitor, ignore_shared},
    qmp::QmpError,
    record::Record,
    resolve::Destination,
};
use crate::{host::Vm, map::LayoutRegion};
use connect::{connect, hello, introduce, keep_alive};
use copy::Copier;
pub(crate) use plan::plan;
use reins::{Held, Reins};
use rounds::{REREAD, Rounds};
use stream::Streams;

/// Data connections of a migration.
const STREAMS: usize = 2;
/// The guest does not stand still for longer than this before it is handed over, unless it was asked to ([`OnNoConverge::Stop`]).
const BLACKOUT: Duration = Duration::from_secs(10);
/// How long the guest may stand still if nothing is said.
pub(crate) const DOWNTIME_MS: u64 = 50;

/// Why a migration ends before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Somebody called it off, or it does not converge.
    Aborted(String),
    /// Something went wrong.
    Failed(String),
}

impl Stop {
    pub(super) fn failed(why: impl Display) -> Self {
        Self::Failed(why.to_string())
    }
}

impl From<LinkError> for Stop {
    fn from(error: LinkError) -> Self {
        Self::failed(error)
    }
}

impl From<QmpError> for Stop {
    fn from(error: QmpError) -> Self {
        Self::failed(error)
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::failed(error)
    }
}

/// A migration under way, past its checks.
pub(super) struct Outgoing {
    vm: Arc<Vm>,
    request: MigrationRequest,
    monitor: Arc<Mutex<Monitor>>,
    copier: Copier,
    reins: Arc<Reins>,
    destination: Destination,
    /// Guest memory as it was when this began.
    regions: Vec<LayoutRegion>,
}

/// Runs an outgoing migration from its place in the queue to its end.
pub(crate) async fn run(
    shared: Arc<Shared>,
    vm: Arc<Vm>,
    client: Client,
    request: MigrationRequest,
    record: Arc<Record>,
    abort: CancellationToken,
) {
    let place = tokio::select! {
        place = Arc::clone(&shared.places).acquire_owned() => place,
        () = abort.cancelled() => return record.end(Outcome::Aborted, "it was called off before it began"),
    };
    let result = migrate(&shared, &vm, client, request, &record, abort).await;
    drop(place);
    match result {
        Ok(()) => record.end(Outcome::Completed, "the guest runs at the destination"),
        Err(Stop::Aborted(why)) => record.end(Outcome::Aborted, why),
        Err(Stop::Failed(why)) => record.end(Outcome::Failed, why),
    }
}

async fn migrate(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    client: Client,
    request: MigrationRequest,
    record: &Arc<Record>,
    abort: CancellationToken,
) -> Result<(), Stop> {
    record.enter(Phase::Checking);
    let found = checks::look(vm, &request).await;
    refuse(&found.checks)?;
    let (Some(mut monitor), Some(version)) = (found.monitor, found.version) else {
        return Err(Stop::failed("the VM's monitor is gone"));
    };
    record.enter(Phase::Connecting);
    // One look for all: pages are numbered as in this layout from here to the end.
    let snapshot = vm.snapshot();
    let (regions, pages) = (snapshot.layout().regions().to_vec(), snapshot.pages());
    let hello = hello(vm, &snapshot, &request, version.to_string(), found.backends, false);
    drop(snapshot);
    let pace = Arc::new(shared.pace.join(request.max_bandwidth));
    let streams_stop = CancellationToken::new();
    let _streams = streams_stop.clone().drop_guard();
    // What the destination has to say is heard to the end, also if the data connections have ended.
    let reader = CancellationToken::new();
    let _reader = reader.clone().drop_guard();
    let (speaker, mut frames) = connect(&client, record, &reader).await?;
    let ready = introduce(&speaker, &mut frames, &hello, &abort).await?;
    refuse(&ready.checks)?;
    keep_alive(speaker.clone(), reader.clone());

    // From here on something is changed in the VMM: the guard comes first.
    // (What it is set to for us is set in the last moment: whoever saves the VM meanwhile shall have its memory in what he saves.)
    let ignored_shared = monitor.capability("x-ignore-shared").await?.unwrap_or(false);
    let orders = Orders {
        vm: vm.name().to_owned(),
        steps: vec![Step::with(ignore_shared(ignored_shared))],
        ..Orders::default()
    };
    let no_guard = |error| {
        Stop::failed(format!(
            "there can be no guard for the VM, and without one nothing is changed in it: {error}"
        ))
    };
    let guard = Guard::start(monitor.share().map_err(no_guard)?, &orders).map_err(no_guard)?;
    let (jobs, receiver) = mpsc::unbounded_channel();
    let streams = Arc::new(Streams {
        vm: Arc::clone(vm),
        pace: Arc::clone(&pace),
        compression: request.compression,
        jobs: SyncMutex::new(receiver),
        withdrawn: SyncMutex::new(HashSet::new()),
        written: Default::default(),
        left: AtomicU64::new(0),
        level: AtomicU8::new(1),
        failure: SyncMutex::new(None),
        stop: streams_stop,
    });
    let mut outgoing = Outgoing {
        regions,
        vm: Arc::clone(vm),
        monitor: Arc::new(Mutex::new(monitor)),
        copier: Copier::new(copy::Parts {
            record: Arc::clone(record),
            speaker,
            frames,
            pages,
            namer: Namer::new(ready.names),
            streams: Arc::clone(&streams),
            pace,
            jobs,
            abort,
        }),
        reins: Arc::new(Reins::new(
            vm.name().to_owned(),
            at_source(&request),
            ignored_shared,
            found.running,
            guard,
        )),
        destination: shared.peers.destination(&client, record.id()),
        request,
    };
    let moved = outgoing.move_it(&client, &streams).await;
    outgoing.finish(shared, moved).await
}

/// What is told to the VMM that is left here.
fn at_source(request: &MigrationRequest) -> Vec<Step> {
    match request.at_source {
        AtSource::Quit => vec![Step::new("quit")],
        AtSource::Pause => Vec::new(),
    }
}

/// Says no with all that is in the way.
fn refuse(checks: &[MigrationCheck]) -> Result<(), Stop> {
    let wrong: Vec<_> = checks.iter().filter(|check| !check.ok).map(|check| check.detail.as_str()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Stop::failed(wrong.join("; "))) }
}

/// How long reading all of a VM's memory may take while it stands still: nothing if its writes are tracked.
fn reading(vm: &Vm) -> Duration {
    if vm.info().tracking == Tracking::Exact { Duration::ZERO } else { REREAD * 2 * vm.snapshot().pages() }
}

impl Outgoing {
    /// Everything up to the hand-over: the guest can be put back at any point of it.
    async fn move_it(&mut self, client: &Client, streams: &Arc<Streams>) -> Result<(), Stop> {
        let record = Arc::clone(&self.copier.record);
        record.enter(Phase::Copying);
        // What is written is to be known at once, so that little is left when the guest is stopped.
        let _haste = self.vm.hurried.begin();
        let runtime = Handle::current();
        let channels = join_all((0..STREAMS).map(|_| client.open_channel(record.id(), ChannelKind::Data)));
        for channel in channels.await {
            let channel = channel?;
            let io = Counted::new(channel, Arc::clone(&record.wire));
            let (streams, runtime) = (Arc::clone(streams), runtime.clone());
            tokio::task::spawn_blocking(move || streams.send(io, &runtime));
        }
        let downtime = Duration::from_millis(self.request.downtime_ms.unwrap_or(DOWNTIME_MS));
        // One that was paused when this began is nobody's to let run but his who paused it, so it is not stopped either.
        let running = self.reins.running();
        let mut rounds = Rounds {
            vm: Arc::clone(&self.vm),
            monitor: Arc::clone(&self.monitor),
            reins: Arc::clone(&self.reins),
            downtime,
            on_no_converge: self.request.on_no_converge,
            throttle: None,
            throttled: 0,
            may_throttle: running,
            may_drain: running && self.vm.descriptor().direct_io.is_some(),
            regions: self.regions.clone(),
        };
        let copied = rounds.run(&mut self.copier).await;
        let ended = rounds.end_throttle(&self.copier).await;
        copied.and(ended)?;
        if self.request.on_no_converge == OnNoConverge::Stop {
            return self.switch_over().await;
        }
        // All memory of an advisory VM is read again meanwhile (twice), as was announced. A large one shall not stand still for nothing.
        let limit = BLACKOUT.max(downtime * 4) + reading(&self.vm) * 2;
        timeout(limit, self.switch_over()).await.unwrap_or_else(|_| {
            Err(Stop::failed(format!(
                "the guest has stood still for {} seconds and is not there yet",
                limit.as_secs()
            )))
        })
    }
}
