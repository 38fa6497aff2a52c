//! Telling the destination what pages hold, and sending what it lacks.
//!
//! Owns the offers that are open and the ledger of what has been confirmed. Never decides which pages are told, or when.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use memdex_wire::{
    Fingerprint,
    transfer::{MAX_BLOCK_PAGES, MAX_OFFER, Namer, ToDestination, ToSource, ZERO},
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Stop,
    stream::{Job, Streams},
};
use crate::migrate::{
    ledger::Ledger,
    link::{Frames, LinkError, SILENCE, Speaker},
    pace::Pace,
    record::Record,
};

/// Offers that are open at once: enough to keep a long link busy.
const WINDOW: usize = 12;
/// So many times [`SILENCE`] the destination may do nothing.
const PATIENCE: u32 = 3;
/// So few offers are open when a round is nearly told.
const NEARLY: usize = 3;
/// Least pages in an offer, if there are so many.
const OFFER: usize = 1024;

/// See the module.
pub(super) struct Copier {
    pub(super) record: Arc<Record>,
    pub(super) speaker: Speaker,
    pub(super) frames: Frames<ToSource>,
    pub(super) ledger: Ledger,
    pub(super) streams: Arc<Streams>,
    pub(super) pace: Arc<Pace>,
    pub(super) jobs: mpsc::UnboundedSender<Job>,
    /// Somebody calls it off.
    pub(super) abort: CancellationToken,
    /// What the destination wants contents to be called.
    namer: Namer,
    /// The destination has said that device state may come.
    pub(super) device_ready: bool,
    /// It may say that it has loaded the device state, and it has.
    pub(super) may_load: bool,
    pub(super) device_loaded: bool,
    open: HashMap<u32, Open>,
    /// Contents that the destination has looked for so far, and those of them that it has asked for.
    looked_for: (usize, usize),
    next: u32,
    began: Instant,
}

struct Open {
    pages: Arc<Vec<(u32, Fingerprint)>>,
    /// How often a position was asked for.
    asked: usize,
    /// Pages that are not zeros.
    contents: usize,
}

/// What a copier is made of.
pub(super) struct Parts {
    pub(super) record: Arc<Record>,
    pub(super) speaker: Speaker,
    pub(super) frames: Frames<ToSource>,
    pub(super) pages: u32,
    pub(super) namer: Namer,
    pub(super) streams: Arc<Streams>,
    pub(super) pace: Arc<Pace>,
    pub(super) jobs: mpsc::UnboundedSender<Job>,
    pub(super) abort: CancellationToken,
}

impl Copier {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            record: parts.record,
            speaker: parts.speaker,
            frames: parts.frames,
            ledger: Ledger::new(parts.pages),
            streams: parts.streams,
            pace: parts.pace,
            jobs: parts.jobs,
            abort: parts.abort,
            device_ready: false,
            may_load: false,
            device_loaded: false,
            namer: parts.namer,
            open: HashMap::new(),
            looked_for: (0, 0),
            next: 0,
            began: Instant::now(),
        }
    }

    /// Tells all these contents and returns when the destination has them in place, but for pages that have changed meanwhile. With `push`
    /// contents are sent without waiting to be asked: a round trip less, for what is hardly there already. `nearly` is cancelled when nearly all
    /// is there.
    pub(super) async fn tell(
        &mut self,
        contents: &[(u32, Fingerprint)],
        push: bool,
        nearly: &CancellationToken,
    ) -> Result<(), Stop> {
        let mut left = contents.len();
        self.note_left(left);
        self.show(left);
        // Several offers even of few pages: the destination works on one while the next is on its way.
        let each = contents.len().div_ceil(4).clamp(OFFER, MAX_OFFER);
        for pages in contents.chunks(if push { MAX_OFFER } else { each }) {
            while self.open.len() >= WINDOW {
                self.next_frame(left).await?;
            }
            self.offer(pages, push).await?;
            left -= pages.len();
        }
        while !self.open.is_empty() {
            if self.open.len() <= NEARLY {
                nearly.cancel();
            }
            self.next_frame(0).await?;
        }
        nearly.cancel();
        self.record.zero.store(self.ledger.zeros(), Relaxed);
        Ok(())
    }

    async fn offer(&mut self, pages: &[(u32, Fingerprint)], push: bool) -> Result<(), Stop> {
        let batch = self.next;
        self.next = self.next.wrapping_add(1);
        let named = |(page, content): &(u32, Fingerprint)| (*page, self.namer.name(content));
        let frame = ToDestination::Offer { batch, push, pages: pages.iter().map(named).collect() };
        let bytes = frame.encode();
        let wait = self.pace.take(bytes.len());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let pages = Arc::new(pages.to_vec());
        let contents = pages.iter().filter(|(_, content)| *content != ZERO).count();
        self.open.insert(batch, Open { pages: Arc::clone(&pages), asked: 0, contents });
        self.speaker.say(&frame).await?;
        if push {
            let mut seen = std::collections::HashSet::new();
            let distinct = pages
                .iter()
                .enumerate()
                .filter(|(_, (_, content))| *content != ZERO && seen.insert(self.namer.name(content)));
            let positions: Vec<u16> = distinct.map(|(position, _)| position as u16).collect();
            self.queue(batch, &positions)?;
        }
        Ok(())
    }

    fn queue(&mut self, batch: u32, positions: &[u16]) -> Result<(), Stop> {
        let open = self.open.get_mut(&batch);
        let open = open.ok_or_else(|| Stop::failed("the destination asks for what was not offered"))?;
        if open.asked == 0 {
            self.looked_for.0 += open.contents;
        }
        self.looked_for.1 += positions.len();
        open.asked += positions.len();
        // Each can be asked for again once, if another page with the same content was withdrawn.
        if open.asked > 2 * open.pages.len() || positions.iter().any(|p| usize::from(*p) >= open.pages.len())
        {
            return Err(Stop::failed("the destination asks for more than was offered"));
        }
        for positions in positions.chunks(MAX_BLOCK_PAGES) {
            let job = Job { batch, offered: Arc::clone(&open.pages), positions: positions.to_vec() };
            self.jobs.send(job).map_err(|_| Stop::failed("no data connection is left"))?;
        }
        Ok(())
    }

    /// Says how much may still have to be sent in this round: as many of these pages as were asked for of those before.
    fn note_left(&self, pages: usize) {
        let share = match self.looked_for {
            (0, _) => 1.0,
            (looked_for, asked) => (asked as f64 / looked_for as f64).min(1.0),
        };
        self.streams.left.store(crate::units::bytes((pages as f64 * share) as u64), Relaxed);
    }

    /// Shows how far it is: so many pages the destination has not confirmed yet.
    fn show(&self, pages: usize) {
        let (level, wire) = (self.streams.level.load(Relaxed), self.record.wire.load(Relaxed));
        let rate = wire as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        // As fast as it went so far. What is written meanwhile comes on top.
        let done = self.record.sent.load(Relaxed) + self.record.matched.load(Relaxed);
        let each = self.began.elapsed().as_secs_f64() / done.max(1) as f64;
        self.record.set_progress(|progress| {
            progress.remaining_bytes = crate::units::bytes(pages as u64);
            progress.expected_ms = (done > 0).then_some((each * pages as f64 * 1e3) as u64);
            progress.rate = rate as u64;
            progress.compression_level = level;
        });
    }

    /// Waits for what the destination says next, and acts on it.
    async fn next_frame(&mut self, left: usize) -> Result<(), Stop> {
        match self.hear_in_time().await? {
            ToSource::Need { batch, positions } => self.queue(batch, &positions),
            ToSource::Done { batch } => {
                let open = self.open.remove(&batch);
                let open =
                    open.ok_or_else(|| Stop::failed("the destination confirms what was not offered"))?;
                let mut withdrawn = self.streams.withdrawn.lock().unwrap_or_else(PoisonError::into_inner);
                for (position, (page, content)) in open.pages.iter().enumerate() {
                    // What was withdrawn was noted before the destination heard of it.
                    if !withdrawn.remove(&(batch, position as u16)) {
                        self.ledger.set(*page, *content);
                    }
                }
                drop(withdrawn);
                let asked = open.asked.min(open.contents);
                if asked == 0 {
                    self.looked_for.0 += open.contents;
                }
                self.record.sent.fetch_add(asked as u64, Relaxed);
                self.record.matched.fetch_add((open.contents - asked) as u64, Relaxed);
                let waiting: usize = self.open.values().map(|open| open.pages.len()).sum();
                self.note_left(left + waiting);
                self.show(left + waiting);
                Ok(())
            }
            ToSource::DeviceReady if !self.device_ready => {
                self.device_ready = true;
                Ok(())
            }
            _ => Err(Stop::failed("the destination says something out of turn")),
        }
    }

    /// The next thing the destination says. It has to say something, or take something, now and then: that it lives is not enough.
    pub(super) async fn hear_in_time(&mut self) -> Result<ToSource, Stop> {
        let mut idle = 0;
        loop {
            let before = self.streams.written.0.load(Relaxed);
            if let Ok(said) = tokio::time::timeout(SILENCE, self.hear()).await {
                return said;
            }
            idle = if self.streams.written.0.load(Relaxed) == before { idle + 1 } else { 0 };
            if idle >= PATIENCE {
                return Err(Stop::failed(format!(
                    "the destination lives, but has done nothing for {} seconds",
                    SILENCE.as_secs() * u64::from(PATIENCE)
                )));
            }
        }
    }

    /// The next thing the destination says. Ends early if anything has gone wrong, or somebody calls it off.
    pub(super) async fn hear(&mut self) -> Result<ToSource, Stop> {
        tokio::select! {
            biased;
            frame = self.frames.recv() => match frame.unwrap_or(Err(LinkError::Closed))? {
                ToSource::Fail(why) => Err(gave_up(&why)),
                frame => Ok(frame),
            },
            () = self.abort.cancelled() => Err(Stop::Aborted("it was called off".to_owned())),
            () = self.streams.stop.cancelled() => {
                let failure = self.streams.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                // The destination may have said why it no longer takes anything, after what else it had to say.
                let last_words = async {
                    loop {
                        match self.frames.recv().await {
                            Some(Ok(ToSource::Fail(why))) => return Some(why),
                            Some(Ok(_)) => {}
                            _ => return None,
                        }
                    }
                };
                if let Ok(Some(why)) = tokio::time::timeout(LAST_WORDS, last_words).await {
                    return Err(gave_up(&why));
                }
                Err(Stop::failed(failure.unwrap_or_else(|| "the data connections have ended".to_owned())))
            }
        }
    }
}

/// The destination says that it has given up, and why.
pub(super) fn gave_up(why: &str) -> Stop {
    Stop::failed(format!("the destination gave up: {}", migrate_client::printable(why)))
}

const LAST_WORDS: Duration = Duration::from_millis(500);
