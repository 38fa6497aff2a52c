//! The destination: a waiting QEMU's RAM file is filled, its device state handed in, and the guest let run when the source says so.
//!
//! Owns the conversation on the control connection. What is filled in is [`session`]'s, what comes on data connections [`stream`]'s.

mod checks;
mod recover;
mod session;
mod stream;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use memdex_wire::{
    migration::{Direction, Outcome, Phase},
    transfer::{Hello, Ready, ToDestination, ToSource},
};
use migrate_client::Channel;
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    sync::{Mutex as AsyncMutex, Semaphore},
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    guard::{Guard, Orders, Step},
    journal::{Decision, Entry},
    link::{self, Counted, Frames, LinkError, SILENCE, Speaker},
    monitor::{Monitor, ignore_shared},
    record::{Record, Subject},
};
use crate::watch::process::Process;
pub(crate) use checks::{check, key};
pub(crate) use recover::recover;
pub(crate) use session::Session;
use session::{Failure, Parts};

/// Data connections of one migration at most.
const MAX_STREAMS: u32 = 16;
/// Time from one look at what is going on to the next.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for QEMU to load its device state.
const LOADING: Duration = Duration::from_secs(30);
/// How long a VMM that is ending may take, with all its memory to be given back.
const ENDING: Duration = Duration::from_secs(5);
/// Longest wait for the tracker to stand aside.
const ASIDE: Duration = Duration::from_secs(20);

/// Whether the guest may run here: decided once, see [`super::resolve`].
#[derive(Debug, Default)]
pub(crate) struct Verdict(Mutex<Option<bool>>);

impl Verdict {
    /// Decides that it may, unless it has been decided that it never will. Returns what holds from now on.
    fn commit(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(true)
    }

    /// Decides that it never will, unless it has been decided that it may. True if it never will.
    pub(crate) fn abort(&self) -> bool {
        !*self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(false)
    }
}

/// An incoming migration, as requests find it.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) record: Arc<Record>,
    pub(crate) verdict: Verdict,
    pub(crate) stop: CancellationToken,
    session: Mutex<Option<Arc<Session>>>,
    /// Each data connection has a thread and buffers of its own.
    streams: Semaphore,
}

impl Incoming {
    /// One whose end is known.
    pub(crate) fn ended(record: Arc<Record>) -> Self {
        let incoming = Self {
            record,
            verdict: Verdict::default(),
            stop: CancellationToken::new(),
            session: Mutex::new(None),
            streams: Semaphore::new(0),
        };
        incoming.stop.cancel();
        incoming
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves a control connection to its end.
pub(crate) async fn receive(shared: Arc<Shared>, id: String, io: Box<dyn Channel>) {
    let record = Arc::new(Record::new(id, Direction::Incoming, Subject::default()));
    let stop = shared.stop.child_token();
    // The reader outlives `stop`: the last words are still to be heard.
    let reader = CancellationToken::new();
    let (speaker, mut frames) =
        link::open(Counted::new(io, Arc::clone(&record.wire)), reader.clone(), link::pong);
    let _reader = reader.drop_guard();
    let Ok(Some(Ok(ToDestination::Hello(hello)))) = timeout(SILENCE, frames.recv()).await else { return };
    let found = checks::look(&shared.host, &hello).await;
    let possible = found.checks.iter().all(|check| check.ok);
    let ready = Ready {
        vm: found.vm.as_ref().map(|vm| vm.id().to_owned()).unwrap_or_default(),
        qemu: found.version.map(|version| version.to_string()).unwrap_or_default(),
        checks: found.checks,
    };
    let (Some(vm), Some(monitor), Some(ram), true, false) =
        (found.vm, found.monitor, found.ram, possible, hello.dry_run)
    else {
        let _ = speaker.say(&ToSource::Ready(ready)).await;
        speaker.close().await;
        return;
    };
    let subject = Subject {
        vm: vm.id().to_owned(),
        name: vm.name().to_owned(),
        to: "this host".to_owned(),
        dest_vm: hello.dest_vm.clone(),
    };
    record.set_subject(subject, u64::from(found.layout.pages()));
    let incoming = Arc::new(Incoming {
        record: Arc::clone(&record),
        verdict: Verdict::default(),
        stop: stop.clone(),
        session: Mutex::new(None),
        streams: Semaphore::new(MAX_STREAMS as usize),
    });
    if let Err(why) = shared.admit_incoming(&incoming, vm.id()) {
        let _ = speaker.say(&ToSource::Fail(why)).await;
        return;
    }
    record.enter(Phase::Connecting);
    record.say(format!("receiving {} from another host", hello.name));
    let session = Arc::new(Session::new(Parts {
        record: Arc::clone(&record),
        vm,
        shared: Arc::clone(shared.host.shared()),
        in_flight: Arc::clone(&shared.in_flight),
        ram,
        pages: found.layout.pages(),
        speaker: speaker.clone(),
        stop,
    }));
    let mut destination = Destination {
        shared: Arc::clone(&shared),
        incoming: Arc::clone(&incoming),
        session: Arc::clone(&session),
        speaker: speaker.clone(),
        monitor: AsyncMutex::new(monitor),
        guard: None,
        entry: None,
        agreed: false,
        device: None,
        loaded: false,
        known: false,
    };
    let result = destination.live(&hello, ready, &mut frames).await;
    destination.end(result).await;
    speaker.close().await;
    let last = async {
        while let Some(Ok(frame)) = frames.recv().await {
            destination.known |= matches!(frame, ToDestination::Abort(_) | ToDestination::Heard);
        }
    };
    let _ = timeout(SILENCE, last).await;
    // A source that may have handed over, and has not said that it knows the end, may ask until it is forgotten.
    if destination.known || !destination.loaded {
        shared.journal.remove(record.id());
    }
}

/// Serves a data connection to its end.
pub(crate) async fn stream(incoming: &Incoming, io: Box<dyn Channel>) {
    let Some(session) = incoming.session() else { return };
    let Ok(_place) = incoming.streams.try_acquire() else { return };
    let io = Counted::new(io, Arc::clone(&incoming.record.wire));
    let runtime = tokio::runtime::Handle::current();
    let _ = tokio::task::spawn_blocking(move || stream::receive(&session, io, &runtime)).await;
}

struct Destination {
    shared: Arc<Shared>,
    incoming: Arc<Incoming>,
    session: Arc<Session>,
    speaker: Speaker,
    monitor: AsyncMutex<Monitor>,
    guard: Option<Guard>,
    entry: Option<Entry>,
    /// Both ends have the same digest.
    agreed: bool,
    /// Our end of what QEMU reads its device state from.
    device: Option<UnixStream>,
    loaded: bool,
    /// The source knows how it ended.
    known: bool,
}

impl Destination {
    fn record(&self) -> &Record {
        &self.incoming.record
    }

    async fn live(
        &mut self,
        hello: &Hello,
        ready: Ready,
        frames: &mut Frames<ToDestination>,
    ) -> Result<(), Failure> {
        self.make_ready(hello).await?;
        self.say(&ToSource::Ready(ready)).await?;
        self.record().enter(Phase::Copying);
        let vmm = Process::open(self.session.vm.process()).map_err(|_| GONE.to_owned())?;
        let mut look = interval(LOOK);
        loop {
            tokio::select! {
                frame = frames.recv() => {
                    let frame = frame.unwrap_or(Err(LinkError::Closed)).map_err(|error| error.to_string())?;
                    if self.frame(frame).await? {
                        return Ok(());
                    }
                }
                () = self.session.stop.cancelled() => {
                    return Err(self.session.failure().unwrap_or_else(|| "it was called off at the destination".to_owned()));
                }
                _ = look.tick() => {
                    if !vmm.alive() {
                        return Err(GONE.to_owned());
                    }
                    if self.session.has_deferred() {
                        let session = Arc::clone(&self.session);
                        blocking(move || session.look_again()).await?;
                    }
                }
            }
        }
    }

    /// From here on something is changed: orders for the guard and the journal come first.
    async fn make_ready(&mut self, hello: &Hello) -> Result<(), Failure> {
        let process = self.session.vm.process();
        let monitor = self.monitor.get_mut();
        let entry = Entry {
            id: self.incoming.record.id().to_owned(),
            name: self.session.vm.name().to_owned(),
            process: (process.pid, process.start_time),
            monitor: monitor.path().to_owned(),
            decision: Decision::Receiving,
            run: true,
        };
        self.shared
            .journal
            .write(&entry)
            .map_err(|error| format!("the journal cannot be written: {error}"))?;
        self.entry = Some(entry);
        let orders = Orders {
            vm: self.session.vm.name().to_owned(),
            steps: vec![Step::with(ignore_shared(false))],
            ..Orders::default()
        };
        let descriptor = monitor.share().map_err(|error| no_guard(&error))?;
        self.guard = Some(Guard::start(descriptor, &orders).map_err(|error| no_guard(&error))?);
        monitor.ignore_shared(true).await.map_err(|error| error.to_string())?;
        self.session.vm.stand_aside(ASIDE).await.map_err(|error| error.to_string())?;
        let session = Arc::clone(&self.session);
        let known = blocking(move || session.take_stock()).await?;
        // From now on others find here what has come.
        let source: Arc<Session> = Arc::clone(&self.session);
        self.session.shared.registry.add_source(source);
        *self.incoming.session.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::clone(&self.session));
        if known > 0 {
            self.record().say(format!("the RAM file holds {known} pages with content already"));
        }
        tracing::debug!(name = hello.name, "ready to receive");
        Ok(())
    }

    /// Acts on what the source says. True when the guest runs here.
    async fn frame(&mut self, frame: ToDestination) -> Result<bool, Failure> {
        match frame {
            ToDestination::Offer { batch, push, pages } => {
                if self.agreed {
                    return Err("the source offers pages after the digest".to_owned());
                }
                let session = Arc::clone(&self.session);
                blocking(move || session.offer(batch, push, pages)).await?;
            }
            ToDestination::Digest(theirs) => self.compare(theirs).await?,
            ToDestination::PrepareDevice => self.prepare_device().await?,
            ToDestination::Device(bytes) => {
                let device = self.device.as_mut().ok_or("device state comes before it was announced")?;
                let written = timeout(SILENCE, device.write_all(&bytes)).await;
                written.map_err(|_| "QEMU does not take its device state".to_owned())?.map_err(|error| {
                    format!("QEMU does not take its device state ({error}): see its standard error")
                })?;
            }
            ToDestination::DeviceEnd => self.load_device().await?,
            ToDestination::HandOver { run } => {
                self.take_over(run).await?;
                return Ok(true);
            }
            ToDestination::Abort(why) => {
                self.known = true;
                return Err(why);
            }
            ToDestination::Hello(_) | ToDestination::Ping | ToDestination::Heard => {
                return Err("the source says something out of turn".to_owned());
            }
        }
        Ok(false)
    }

    async fn compare(&mut self, theirs: [u8; 32]) -> Result<(), Failure> {
        self.record().enter(Phase::Comparing);
        if self.session.has_open_offers() {
            return Err("the source compares before everything has come".to_owned());
        }
        let session = Arc::clone(&self.session);
        let ours = blocking(move || Ok(session.root())).await?;
        self.say(&ToSource::Digest(ours)).await?;
        if ours != theirs {
            return Err("the digests of the guest's memory differ: it is not used".to_owned());
        }
        self.agreed = true;
        Ok(())
    }

    async fn prepare_device(&mut self) -> Result<(), Failure> {
        if !self.agreed || self.device.is_some() {
            return Err("device state is announced out of turn".to_owned());
        }
        self.record().enter(Phase::DeviceState);
        // A QEMU that has begun to read device state cannot wait for another one.
        self.order(vec![Step::new("quit")])?;
        self.write_journal(Decision::Loading)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
        ours.set_nonblocking(true).map_err(|error| error.to_string())?;
        self.device = Some(UnixStream::from_std(ours).map_err(|error| error.to_string())?);
        use std::os::fd::AsFd;
        self.monitor.get_mut().receive_state(theirs.as_fd()).await.map_err(|error| error.to_string())?;
        self.say(&ToSource::DeviceReady).await
    }

    async fn load_device(&mut self) -> Result<(), Failure> {
        let device = self.device.as_mut().ok_or("device state ends before it was announced")?;
        device.shutdown().await.map_err(|error| error.to_string())?;
        let monitor = self.monitor.get_mut();
        monitor.migration_complete(Instant::now() + LOADING).await?;
        let state = monitor.status().await.map_err(|error| error.to_string())?;
        if !matches!(state.as_str(), "paused" | "prelaunch" | "postmigrate" | "suspended" | "shutdown") {
            return Err(format!("QEMU is {state} after its device state was loaded, not paused"));
        }
        self.loaded = true;
        self.say(&ToSource::DeviceLoaded).await
    }

    /// The guest is ours.
    async fn take_over(&mut self, run: bool) -> Result<(), Failure> {
        if !self.loaded {
            return Err("the source hands over what has not been loaded".to_owned());
        }
        self.record().enter(Phase::HandingOver);
        // The source still has the guest, and the last look is a while ago.
        let vmm = Process::open(self.session.vm.process()).map_err(|_| GONE.to_owned())?;
        if !self.incoming.verdict.commit() {
            return Err("it was called off before it was handed over".to_owned());
        }
        // Before anything is done about it: who comes after, and who asks, must know.
        if let Some(entry) = &mut self.entry {
            entry.run = run;
        }
        self.write_journal(Decision::Committed)?;
        let mut steps = vec![Step::with(ignore_shared(false))];
        if run {
            steps.insert(0, Step::run());
        }
        self.order(steps)?;
        if run {
            let monitor = self.monitor.get_mut();
            if let Err(error) = monitor.cont().await {
                let may_run = match monitor.status().await {
                    Ok(state) => state == "running",
                    Err(_) => lives_on(&vmm).await,
                };
                if !may_run {
                    return Err(format!("the guest could not be let run here: {error}"));
                }
            }
        }
        Ok(())
    }

    /// Leaves everything as it has to be.
    async fn end(&mut self, result: Result<(), Failure>) {
        let session = Arc::clone(&self.session);
        let committed = !self.incoming.verdict.abort();
        match &result {
            Ok(()) => {
                self.incoming.record.end(Outcome::Completed, "the guest runs on this host");
                let _ = self.speaker.say(&ToSource::Running).await;
                // QEMU's next migration is not ours to shape.
                let _ = self.monitor.get_mut().ignore_shared(false).await;
                // Only now: who comes after leaves it alone from here on.
                if let Err(error) = self.write_journal(Decision::Completed) {
                    self.record().say(error);
                }
            }
            Err(why) => {
                session.stop.cancel();
                // What is being written is written; nothing is any more when the memory is given back.
                let incoming = Arc::clone(&self.incoming);
                if let Ok(Ok(all)) = timeout(SILENCE, incoming.streams.acquire_many(MAX_STREAMS)).await {
                    all.forget();
                }
                if self.device.is_some() || committed {
                    let _ = self.monitor.get_mut().quit().await;
                } else {
                    let _ = self.monitor.get_mut().ignore_shared(false).await;
                    let ram = Arc::clone(&session);
                    // It is of no use to anybody, and it is memory.
                    let _ =
                        blocking(move || ram.ram.punch(0..u32::MAX).map_err(|error| error.to_string())).await;
                }
                if self.loaded
                    && let Err(error) = self.write_journal(Decision::GivenUp)
                {
                    self.record().say(error);
                }
                let outcome = if session.failure().is_some() { Outcome::Failed } else { Outcome::Aborted };
                self.incoming.record.end(outcome, why.clone());
                let _ = self.speaker.say(&ToSource::Fail(why.clone())).await;
            }
        }
        session.stop.cancel();
        self.incoming.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        session.in_flight.forget(session.map);
        session.shared.registry.remove_source(&session.shared, session.map);
        session.vm.come_back();
        if let Some(guard) = self.guard.take() {
            guard.release();
        }
    }

    fn order(&mut self, steps: Vec<Step>) -> Result<(), Failure> {
        let vm = self.session.vm.name().to_owned();
        let guard = self.guard.as_mut().ok_or("there is no guard")?;
        guard.order(&Orders { vm, steps, ..Orders::default() }).map_err(|error| no_guard(&error))
    }

    fn write_journal(&mut self, decision: Decision) -> Result<(), Failure> {
        let entry = self.entry.as_mut().ok_or("there is no journal")?;
        entry.decision = decision;
        self.shared.journal.write(entry).map_err(|error| format!("the journal cannot be written: {error}"))
    }

    async fn say(&self, frame: &ToSource) -> Result<(), Failure> {
        self.speaker.say(frame).await.map_err(|error| error.to_string())
    }
}

/// Whether a VMM of which the monitor is lost still lives: its connections close a moment before it has ended.
async fn lives_on(vmm: &Process) -> bool {
    let begun = Instant::now();
    while vmm.alive() && begun.elapsed() < ENDING {
        tokio::time::sleep(LOOK).await;
    }
    vmm.alive()
}

const GONE: &str = "the waiting VM at the destination has ended";

fn no_guard(error: &std::io::Error) -> Failure {
    format!("there can be no guard for the VM ({error}), and without one nothing is changed in it")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("the daemon is stopping".to_owned()))
}
