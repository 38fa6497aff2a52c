//! The source: a running VM is copied, stopped, handed over.
//!
//! Owns the life of an outgoing migration and, at every way out of it, what becomes of the guest. The rounds are [`rounds`]', what is sent in
//! them [`copy`]'s and [`stream`]'s, the time in which the guest stands still [`switch_over`]'s.

mod checks;
mod copy;
mod plan;
mod rounds;
mod stream;
mod switch_over;
mod throttle;

use std::{
    collections::HashSet,
    fmt::Display,
    sync::{Arc, Mutex as SyncMutex, atomic::AtomicU8},
    time::{Duration, Instant},
};

use memdex_wire::{
    migration::{AtSource, MigrationCheck, MigrationRequest, OnNoConverge, Outcome, Phase},
    page::PageState,
    transfer::{Hello, Ready, ToDestination, ToSource},
};
use migrate_client::{ChannelKind, Client, ClientError};
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc},
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, destination,
    guard::{Guard, Orders, Step},
    link::{self, BEAT, Counted, Frames, LinkError, SILENCE, Speaker},
    monitor::{Monitor, ignore_shared},
    qmp::QmpError,
    record::Record,
    resolve::{Destination, Verdict, who_runs},
};
use crate::host::Vm;
use copy::Copier;
pub(crate) use plan::plan;
use rounds::Rounds;
use stream::Streams;

/// Data connections of a migration.
const STREAMS: usize = 2;
/// Time for the destination to make ready: it may have to hash what is in the RAM file.
const MAKE_READY: Duration = Duration::from_secs(120);
/// The guest does not stand still for longer than this before it is handed over, unless it was asked to ([`OnNoConverge::Stop`]).
const BLACKOUT: Duration = Duration::from_secs(10);
/// How long is tried to let the guest run again.
const PUT_BACK: Duration = Duration::from_secs(60);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(20);
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
    guard: Option<Guard>,
    destination: Destination,
    /// The guest ran when this began.
    running: bool,
    /// QEMU had shared memory switched out of its migration before.
    ignored_shared: bool,
    /// The guest has been stopped, or may have been.
    stopped: bool,
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
    let hello = hello(vm, &request, version.to_string(), false);
    let pace = Arc::new(shared.pace.join(request.max_bandwidth));
    let streams_stop = CancellationToken::new();
    let _streams = streams_stop.clone().drop_guard();
    let (speaker, mut frames) = connect(&client, record, &streams_stop).await?;
    let ready = introduce(&speaker, &mut frames, &hello, &abort).await?;
    refuse(&ready.checks)?;
    keep_alive(speaker.clone(), streams_stop.clone());

    // From here on something is changed in the VMM: the guard comes first.
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
        jobs: SyncMutex::new(receiver),
        withdrawn: SyncMutex::new(HashSet::new()),
        written: Default::default(),
        level: AtomicU8::new(1),
        failure: SyncMutex::new(None),
        stop: streams_stop,
    });
    let mut outgoing = Outgoing {
        vm: Arc::clone(vm),
        monitor: Arc::new(Mutex::new(monitor)),
        copier: Copier::new(copy::Parts {
            record: Arc::clone(record),
            speaker,
            frames,
            pages: vm.snapshot().pages(),
            streams: Arc::clone(&streams),
            pace,
            jobs,
            abort,
        }),
        guard: Some(guard),
        destination: shared.peers.destination(&client, record.id()),
        running: found.running,
        ignored_shared,
        stopped: false,
        request,
    };
    let moved = outgoing.move_it(&client, &streams).await;
    outgoing.finish(shared, moved).await
}

/// Says no with all that is in the way.
fn refuse(checks: &[MigrationCheck]) -> Result<(), Stop> {
    let wrong: Vec<_> = checks.iter().filter(|check| !check.ok).map(|check| check.detail.as_str()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Stop::failed(wrong.join("; "))) }
}

fn hello(vm: &Vm, request: &MigrationRequest, qemu: String, dry_run: bool) -> Hello {
    let snapshot = vm.snapshot();
    let counts = snapshot.counts();
    Hello {
        name: vm.name().to_owned(),
        dest_vm: request.dest_vm.clone().unwrap_or_else(|| vm.name().to_owned()),
        dest_qmp: request.dest_qmp.clone(),
        regions: snapshot.layout().regions().iter().map(|region| u64::from(region.pages)).collect(),
        populated: counts.current
            + snapshot
                .views(0..snapshot.pages())
                .filter(|(_, view)| view.state == PageState::Stale && view.fingerprint.is_some())
                .count() as u64,
        qemu,
        key: destination::key(),
        dry_run,
    }
}

async fn connect(
    client: &Client,
    record: &Record,
    stop: &CancellationToken,
) -> Result<(Speaker, Frames<ToSource>), Stop> {
    let channel = client.open_channel(record.id(), ChannelKind::Control).await?;
    Ok(link::open(Counted::new(channel, Arc::clone(&record.wire)), stop.clone(), link::swallow))
}

async fn introduce(
    speaker: &Speaker,
    frames: &mut Frames<ToSource>,
    hello: &Hello,
    abort: &CancellationToken,
) -> Result<Ready, Stop> {
    speaker.say(&ToDestination::Hello(hello.clone())).await?;
    let answer = async {
        loop {
            match timeout(BEAT, frames.recv()).await {
                Ok(answer) => return answer.unwrap_or(Err(LinkError::Closed)),
                // It is busy making ready; as long as it answers to this it is there.
                Err(_) => speaker.say(&ToDestination::Ping).await?,
            }
        }
    };
    let answer = tokio::select! {
        answer = timeout(MAKE_READY, answer) => answer,
        () = abort.cancelled() => return Err(Stop::Aborted("it was called off".to_owned())),
    };
    match answer {
        Ok(Ok(ToSource::Ready(ready))) => Ok(ready),
        Ok(Ok(ToSource::Fail(why))) => {
            Err(Stop::failed(format!("the destination refuses: {}", migrate_client::printable(&why))))
        }
        Ok(Ok(_)) => Err(switch_over::out_of_turn()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Stop::failed(format!(
            "the destination was not ready within {} seconds",
            MAKE_READY.as_secs()
        ))),
    }
}

/// Shows the destination that we live, and so learns that it does.
fn keep_alive(speaker: Speaker, stop: CancellationToken) {
    tokio::spawn(async move {
        let mut beat = interval(BEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = stop.cancelled() => return,
            }
            if speaker.say(&ToDestination::Ping).await.is_err() {
                return;
            }
        }
    });
}

impl Outgoing {
    /// Everything up to the hand-over: the guest can be put back at any point of it.
    async fn move_it(&mut self, client: &Client, streams: &Arc<Streams>) -> Result<(), Stop> {
        let record = Arc::clone(&self.copier.record);
        record.enter(Phase::Copying);
        self.monitor.lock().await.ignore_shared(true).await?;
        let runtime = Handle::current();
        for _ in 0..STREAMS {
            let channel = client.open_channel(record.id(), ChannelKind::Data).await?;
            let io = Counted::new(channel, Arc::clone(&record.wire));
            let (streams, runtime) = (Arc::clone(streams), runtime.clone());
            tokio::task::spawn_blocking(move || streams.send(io, &runtime));
        }
        let downtime = Duration::from_millis(self.request.downtime_ms.unwrap_or(DOWNTIME_MS));
        if self.request.on_no_converge == OnNoConverge::Throttle {
            self.orders(true, false)?;
        }
        let mut rounds = Rounds {
            vm: Arc::clone(&self.vm),
            monitor: Arc::clone(&self.monitor),
            downtime,
            on_no_converge: self.request.on_no_converge,
            throttle: None,
            throttled: 0,
        };
        let copied = rounds.run(&mut self.copier).await;
        rounds.end_throttle(&self.copier).await;
        // A throttle that could not be taken back is a guest that stands still.
        self.stopped = rounds.throttled > 0;
        copied?;
        if self.request.on_no_converge == OnNoConverge::Stop {
            return self.switch_over().await;
        }
        let limit = BLACKOUT.max(downtime * 4);
        timeout(limit, self.switch_over()).await.unwrap_or_else(|_| {
            Err(Stop::failed(format!(
                "the guest has stood still for {} seconds and is not there yet",
                limit.as_secs()
            )))
        })
    }

    /// Hands over, or puts the guest back.
    async fn finish(mut self, shared: &Shared, moved: Result<(), Stop>) -> Result<(), Stop> {
        let handed_over = match moved {
            Ok(()) => self.hand_over(shared).await,
            Err(stop) => Err(stop),
        };
        match handed_over {
            Ok(()) => {
                self.copier.record.blackout_ends();
                self.gone().await;
                Ok(())
            }
            Err(stop) => {
                let (Stop::Aborted(why) | Stop::Failed(why)) = &stop;
                let (speaker, abort) = (self.copier.speaker.clone(), ToDestination::Abort(why.clone()));
                // The guest does not wait until a link that may be silent has taken it.
                let (_, put_back) = tokio::join!(timeout(BEAT, speaker.say(&abort)), self.put_back());
                match put_back {
                    Ok(()) => Err(stop),
                    Err(trouble) => Err(Stop::Failed(format!("{why}; {trouble}"))),
                }
            }
        }
    }

    /// See [`super::resolve`]. An error means that the destination will never let the guest run.
    async fn hand_over(&mut self, shared: &Shared) -> Result<(), Stop> {
        if self.copier.abort.is_cancelled() {
            return Err(Stop::Aborted("it was called off".to_owned()));
        }
        self.copier.record.enter(Phase::HandingOver);
        self.orders(true, true)?;
        let said = self.copier.speaker.say(&ToDestination::HandOver { run: self.running }).await;
        let heard = match said {
            Ok(()) => timeout(SILENCE, self.copier.frames.recv()).await,
            Err(error) => Ok(Some(Err(error))),
        };
        if let Ok(Some(Ok(ToSource::Running))) = heard {
            // If that is lost, the destination remembers for nothing.
            let _ = timeout(BEAT, self.copier.speaker.say(&ToDestination::Heard)).await;
            return Ok(());
        }
        let record = Arc::clone(&self.copier.record);
        record.say("the link broke while the guest was being handed over: asking the destination whether it runs there");
        tokio::select! {
            verdict = who_runs(&self.destination, |words| record.say(words)) => match verdict {
                Verdict::Destination => Ok(()),
                Verdict::Source => Err(Stop::failed("the destination gave up while the guest was being handed over")),
            },
            () = shared.stop.cancelled() => {
                // The guard has its orders, and more time than we have.
                self.guard = None;
                std::future::pending().await
            }
        }
    }

    /// Tells the guard what to do if we die: what we would do.
    fn orders(&mut self, stopped: bool, handed_over: bool) -> Result<(), Stop> {
        let mut steps = Vec::new();
        if stopped && self.running {
            steps.extend([Step::new("migrate_cancel"), Step::run()]);
        }
        steps.push(Step::with(ignore_shared(self.ignored_shared)));
        let gone = match self.request.at_source {
            AtSource::Quit => vec![Step::new("quit")],
            AtSource::Pause => Vec::new(),
        };
        let ask = handed_over.then(|| self.destination.clone());
        let orders = Orders { vm: self.vm.name().to_owned(), ask, steps, gone };
        let guard = self.guard.as_mut().ok_or_else(|| Stop::failed("there is no guard"))?;
        guard.order(&orders).map_err(|error| Stop::failed(format!("the VM's guard has ended: {error}")))
    }

    /// The guest runs there.
    async fn gone(&mut self) {
        self.vm.set_moved_away();
        let mut monitor = self.monitor.lock().await;
        let told = match self.request.at_source {
            AtSource::Quit => monitor.quit().await,
            AtSource::Pause => monitor.ignore_shared(self.ignored_shared).await,
        };
        if let Err(error) = told {
            self.copier.record.say(format!("the VMM that is left here: {error}"));
        }
        if let Some(guard) = self.guard.take() {
            guard.release();
        }
    }

    /// The guest runs on here, as if nothing had been.
    async fn put_back(&mut self) -> Result<(), String> {
        let mut monitor = self.monitor.lock().await;
        let begun = Instant::now();
        let mut result = Ok(());
        if self.stopped && self.running {
            let _ = monitor.cancel().await;
            loop {
                let told = monitor.cont().await;
                match monitor.status().await {
                    Ok(state) if state == "running" => break,
                    Err(error @ QmpError::Lost(_)) => {
                        result = Err(format!("and the VM has ended: {error}"));
                        break;
                    }
                    _ if begun.elapsed() > PUT_BACK => {
                        let why = told.err().map_or_else(String::new, |error| error.to_string());
                        result = Err(format!("and the guest could not be let run again here: {why}"));
                        break;
                    }
                    _ => sleep(PAUSE).await,
                }
            }
            self.copier.record.blackout_ends();
        }
        if let Err(error) = monitor.restore_ignore_shared(self.ignored_shared).await {
            self.copier.record.say(format!("x-ignore-shared could not be set back: {error}"));
        }
        if let Some(guard) = self.guard.take() {
            // If it could not be put back, the guard goes on trying.
            if result.is_ok() { guard.release() } else { drop(guard) }
        }
        result
    }
}
