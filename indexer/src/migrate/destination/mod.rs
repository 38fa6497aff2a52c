//! The destination: a waiting QEMU's RAM file is filled, its device state handed in, and the guest let run when the source says so.
//!
//! Owns an incoming migration as a thing that can be found and called off, and its life from the first word to the last. What is said meanwhile is
//! [`conversation`]'s, what is offered [`offers`]', what is in place [`session`]'s, what comes on data connections [`stream`]'s, and the VMM
//! [`waiting`]'s.

mod checks;
mod conversation;
mod local;
mod offers;
mod recover;
mod session;
mod stream;
mod waiting;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use memdex_wire::{
    migration::{Direction, Outcome, Phase},
    transfer::{Ready, ToDestination, ToSource},
};
use migrate_client::Channel;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    link::{self, Counted, SILENCE},
    record::{Record, Subject},
};
pub(crate) use checks::{check, key};
use conversation::Conversation;
pub(crate) use recover::recover;
use session::Parts;
pub(crate) use session::Session;
use waiting::Waiting;

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
    streams: AtomicUsize,
    /// It was broken off by the end of a daemon, and what it left in its VM is still being cleared away.
    clearing: AtomicBool,
}

/// Data connections that one migration may have.
const MAX_STREAMS: usize = 8;

impl Incoming {
    /// One of a daemon that was killed. `clearing`: what it left in its VM is still to be cleared away.
    pub(crate) fn broken_off(record: Arc<Record>, clearing: bool) -> Self {
        let incoming = Self {
            record,
            verdict: Verdict::default(),
            stop: CancellationToken::new(),
            session: Mutex::new(None),
            streams: AtomicUsize::new(0),
            clearing: AtomicBool::new(clearing),
        };
        incoming.stop.cancel();
        incoming
    }

    /// Whether nothing may begin with its VM yet, although it has ended.
    pub(crate) fn is_clearing(&self) -> bool {
        self.clearing.load(Relaxed)
    }

    /// Nothing is left of it.
    pub(crate) fn cleared(&self) {
        self.clearing.store(false, Relaxed);
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves a control connection to its end.
pub(crate) async fn receive(shared: Arc<Shared>, id: String, io: Box<dyn Channel>) {
    let record = Record::new(id, Direction::Incoming, Subject::default());
    let record = Arc::new(record.announced(shared.host.shared()));
    let stop = shared.stop.child_token();
    // The reader outlives `stop`: the last words are still to be heard.
    let reader = CancellationToken::new();
    let (speaker, mut frames) =
        link::open(Counted::new(io, Arc::clone(&record.wire)), reader.clone(), link::pong);
    let _reader = reader.drop_guard();
    let Ok(Some(Ok(ToDestination::Hello(hello)))) = timeout(SILENCE, frames.recv()).await else { return };
    if shared.sends(record.id()) {
        let why = "source and destination are the same host: --to names the one to move to";
        let _ = speaker.say(&ToSource::Fail(why.to_owned())).await;
        return;
    }
    let found = checks::look(&shared.host, &hello).await;
    let possible = found.checks.iter().all(|check| check.ok);
    let ready = Ready {
        vm: found.vm.as_ref().map(|vm| vm.id().to_owned()).unwrap_or_default(),
        qemu: found.version.map(|version| version.to_string()).unwrap_or_default(),
        names: shared.namer.key(),
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
        streams: AtomicUsize::new(0),
        clearing: AtomicBool::new(false),
    });
    if let Err(why) = shared.admit_incoming(&incoming, vm.id()) {
        let _ = speaker.say(&ToSource::Fail(why)).await;
        return;
    }
    record.enter(Phase::Connecting);
    record.say(format!("receiving {} from another host", hello.name));
    let process = vm.process();
    let waiting = match Waiting::begin(record.id(), vm.name(), process, monitor, shared.journal.clone()).await
    {
        Ok(waiting) => waiting,
        Err(why) => {
            record.end(Outcome::Failed, why.clone());
            let _ = speaker.say(&ToSource::Fail(why)).await;
            return;
        }
    };
    let session = Arc::new(Session::new(Parts {
        record: Arc::clone(&record),
        vm,
        shared: Arc::clone(shared.host.shared()),
        in_flight: Arc::clone(&shared.in_flight),
        ram,
        pages: found.layout.pages(),
        speaker: speaker.clone(),
        namer: shared.namer.clone(),
        stop,
    }));
    let mut conversation = Conversation::new(incoming, session, speaker.clone(), waiting);
    let result = conversation.hold(ready, &mut frames).await;
    conversation.end(result).await;
    shared.count(&record);
    // The source says when it has heard how it ended; until then the journal knows, whatever becomes of this daemon.
    let goodbye = async {
        while let Some(Ok(frame)) = frames.recv().await {
            if frame == ToDestination::Goodbye {
                return true;
            }
        }
        false
    };
    if timeout(SILENCE, goodbye).await.unwrap_or(false) {
        shared.journal.remove(record.id());
    }
    speaker.close().await;
}

/// Serves a data connection to its end.
pub(crate) async fn stream(incoming: &Incoming, io: Box<dyn Channel>) {
    let Some(session) = incoming.session() else { return };
    if incoming.streams.fetch_add(1, Relaxed) >= MAX_STREAMS {
        return session.fail("the source opens more data connections than was agreed");
    }
    let io = Counted::new(io, Arc::clone(&incoming.record.wire));
    let runtime = tokio::runtime::Handle::current();
    let ours = Arc::clone(&session);
    let received = tokio::task::spawn_blocking(move || stream::receive(&ours, io, &runtime)).await;
    if received.is_err_and(|error| error.is_panic()) {
        session.fail("a data connection broke the destination's memdexd: see its log");
    }
}
