//! What the source says, and what is done about it, in the order that is agreed.
//!
//! Owns that order: no device state is taken before the digests agree, nothing is taken over before it is loaded, and whatever comes out of turn ends the
//! migration.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use memdex_wire::{
    migration::{Outcome, Phase},
    transfer::{Ready, ToDestination, ToSource},
};
use tokio::time::interval;

use super::{
    Incoming,
    session::{Failure, Session},
    waiting::{GONE, Waiting},
};
use crate::migrate::{
    journal::Decision,
    link::{Frames, LinkError, Speaker},
    record::Record,
};

/// Time from one look at what is going on to the next.
const LOOK: Duration = Duration::from_millis(20);
/// The memory of a guest that has come counts as read again when fewer than one page in so many is stale.
const FEW: u64 = 20;
/// Longest time that this is waited for.
const READING: Duration = Duration::from_secs(60);
/// Longest time in which the source says and sends nothing but that it lives, and what is added for each page: where its writes are not tracked it reads all of the guest while that
/// stands still. Not for ever, because the waiting VM is nobody else's meanwhile.
const NOTHING: Duration = Duration::from_secs(30 * 60);
const READ_AGAIN: Duration = Duration::from_micros(6);
/// Longest wait for the tracker to stand aside.
pub(super) const ASIDE: Duration = Duration::from_secs(20);

/// One incoming migration, past its checks.
pub(super) struct Conversation {
    pub(super) incoming: Arc<Incoming>,
    pub(super) session: Arc<Session>,
    pub(super) speaker: Speaker,
    pub(super) waiting: Waiting,
    /// Both ends have the same digest.
    agreed: bool,
    /// The source has called it off.
    called_off: bool,
    /// Something has been put in the RAM file, or is about to be.
    filled: bool,
}

impl Conversation {
    pub(super) fn new(
        incoming: Arc<Incoming>,
        session: Arc<Session>,
        speaker: Speaker,
        waiting: Waiting,
    ) -> Self {
        Self { incoming, session, speaker, waiting, agreed: false, called_off: false, filled: false }
    }

    fn record(&self) -> &Record {
        &self.incoming.record
    }

    async fn say(&self, frame: &ToSource) -> Result<(), Failure> {
        self.speaker.say(frame).await.map_err(|error| error.to_string())
    }

    /// From the first word to the guest running here.
    pub(super) async fn hold(
        &mut self,
        ready: Ready,
        frames: &mut Frames<ToDestination>,
    ) -> Result<(), Failure> {
        self.make_ready().await?;
        self.say(&ToSource::Ready(ready)).await?;
        self.record().enter(Phase::Copying);
        let mut look = interval(LOOK);
        let nothing = NOTHING + READ_AGAIN * self.session.ledger().pages();
        let (mut last, mut sent) = (Instant::now(), 0);
        loop {
            tokio::select! {
                frame = frames.recv() => {
                    let frame = frame.unwrap_or(Err(LinkError::Closed)).map_err(|error| error.to_string())?;
                    if self.act(frame).await? {
                        return Ok(());
                    }
                    last = Instant::now();
                }
                () = self.session.stop.cancelled() => {
                    return Err(self.session.failure().unwrap_or_else(|| {
                        self.called_off = true;
                        "it was called off at the destination".to_owned()
                    }));
                }
                _ = look.tick() => {
                    if !self.waiting.alive() {
                        return Err(GONE.to_owned());
                    }
                    let now = self.record().sent.load(Relaxed);
                    if std::mem::replace(&mut sent, now) != now {
                        last = Instant::now();
                    }
                    if last.elapsed() > nothing {
                        return Err(format!(
                            "the source lives, but has said and sent nothing for {} minutes",
                            nothing.as_secs() / 60
                        ));
                    }
                    if !self.session.has_open_offers() && !self.agreed {
                        // Between rounds, so that next to nothing is left to digest while the guest stands still.
                        let session = Arc::clone(&self.session);
                        blocking(move || Ok(session.root())).await?;
                    }
                    if self.session.has_deferred() {
                        let session = Arc::clone(&self.session);
                        blocking(move || session.look_again()).await?;
                    }
                }
            }
        }
    }

    async fn make_ready(&mut self) -> Result<(), Failure> {
        self.session.vm.stand_aside(ASIDE).await.map_err(|error| error.to_string())?;
        // From now on others find here what is there and what has come. Before anything is in the index: who follows this host goes by both.
        let source: Arc<Session> = Arc::clone(&self.session);
        self.session.shared.registry.add_source(source);
        let session = Arc::clone(&self.session);
        let known = blocking(move || session.take_stock()).await?;
        self.filled = true;
        let ours = Arc::clone(&self.session);
        *self.incoming.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
        if known > 0 {
            self.record().say(format!("the RAM file holds {known} pages with content already"));
        }
        Ok(())
    }

    /// Acts on what the source says. True when the guest runs here.
    async fn act(&mut self, frame: ToDestination) -> Result<bool, Failure> {
        match frame {
            ToDestination::Offer { batch, push, pages } => {
                if self.agreed {
                    return Err("the source offers pages after the digest".to_owned());
                }
                let session = Arc::clone(&self.session);
                blocking(move || session.offer(batch, push, pages)).await?;
            }
            ToDestination::Digest(theirs) => self.compare(theirs).await?,
            ToDestination::PrepareDevice => {
                if self.waiting.has_begun() {
                    return Err("device state is announced out of turn".to_owned());
                }
                self.waiting.begin_device().await?;
                self.say(&ToSource::DeviceReady).await?;
            }
            ToDestination::Device(_) | ToDestination::DeviceEnd if !self.agreed => {
                return Err("device state comes before the digests agree".to_owned());
            }
            ToDestination::Device(bytes) => {
                self.record().enter(Phase::DeviceState);
                self.waiting.device(&bytes).await?;
            }
            ToDestination::DeviceEnd => {
                self.waiting.end_device().await?;
                self.say(&ToSource::DeviceLoaded).await?;
            }
            ToDestination::HandOver { run } => {
                self.take_over(run).await?;
                return Ok(true);
            }
            ToDestination::Abort(why) => {
                self.called_off = true;
                return Err(why);
            }
            ToDestination::Hello(_) | ToDestination::Ping | ToDestination::Goodbye => {
                return Err("the source says something out of turn".to_owned());
            }
        }
        Ok(false)
    }

    async fn compare(&mut self, theirs: [u8; 32]) -> Result<(), Failure> {
        self.record().enter(Phase::Comparing);
        let session = Arc::clone(&self.session);
        let ours = blocking(move || {
            // A block that is of no use any more may still be under way: it must not be written later.
            session.close();
            if session.has_open_offers() {
                return Err("the source compares before everything has come".to_owned());
            }
            session.forget_the_rest()?;
            session.record.zero.store(session.ledger().zeros(), Relaxed);
            Ok(session.root())
        })
        .await?;
        self.say(&ToSource::Digest(ours)).await?;
        if ours != theirs {
            return Err("the digests of the guest's memory differ: it is not used".to_owned());
        }
        self.agreed = true;
        Ok(())
    }

    /// The guest is ours.
    async fn take_over(&mut self, run: bool) -> Result<(), Failure> {
        if !self.waiting.loaded() {
            return Err("the source hands over what has not been loaded".to_owned());
        }
        self.record().enter(Phase::HandingOver);
        // The source still has the guest, and the last look is a while ago.
        if !self.waiting.alive() {
            return Err(GONE.to_owned());
        }
        if !self.incoming.verdict.commit() {
            return Err("it was called off before it was handed over".to_owned());
        }
        self.waiting.run(run).await
    }

    /// Leaves everything as it has to be, and only then says how it ended: who hears that the guest does not run here may let it run elsewhere.
    pub(super) async fn end(self, result: Result<(), Failure>) {
        let Self { incoming, session, speaker, waiting, called_off, filled, .. } = self;
        let committed = !incoming.verdict.abort();
        if result.is_ok() {
            // The source waits for nothing but this.
            let how = if waiting.runs() {
                "the guest runs on this host"
            } else {
                "the guest is on this host, paused as it was"
            };
            incoming.record.end(Outcome::Completed, how);
            let _ = speaker.say(&ToSource::Running).await;
        }
        session.stop.cancel();
        // Nobody writes to the RAM file from here on.
        let ours = Arc::clone(&session);
        let _ = blocking(move || {
            ours.close();
            Ok(())
        })
        .await;
        incoming.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        session.in_flight.forget(session.map);
        match result {
            Ok(()) => {
                session.vm.come_back();
                tokio::spawn(until_known(Arc::clone(&session)));
                waiting.release(Decision::Completed).await;
            }
            Err(why) => {
                let ours = Arc::clone(&session);
                let forgotten = blocking(move || {
                    ours.shared.registry.remove_source(&ours.shared, ours.map);
                    Ok(())
                });
                let _ = forgotten.await;
                let discarded = committed || waiting.has_begun();
                let waiting = if discarded { waiting.discard().await } else { waiting };
                if filled {
                    // What has come is of no use to anybody, and it is memory.
                    let ours = Arc::clone(&session);
                    let _ = blocking(move || ours.ram.punch(0..u32::MAX).map_err(|e| e.to_string())).await;
                }
                session.vm.come_back();
                waiting.release(Decision::GivenUp).await;
                incoming.record.end(if called_off { Outcome::Aborted } else { Outcome::Failed }, why.clone());
                let _ = speaker.say(&ToSource::Fail(why)).await;
            }
        }
    }
}

/// What has come can be found by others as before until this host has read it itself: whoever copies a page from there hashes the copy.
async fn until_known(session: Arc<Session>) {
    let begun = Instant::now();
    let known = || {
        let counts = session.vm.map().held_counts();
        counts.stale < counts.total / FEW
    };
    while session.vm.stopped().is_none() && !known() && begun.elapsed() < READING {
        tokio::time::sleep(LOOK * 10).await;
    }
    let _ = blocking(move || {
        session.shared.registry.remove_source(&session.shared, session.map);
        Ok(())
    })
    .await;
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("the daemon is stopping".to_owned()))
}
