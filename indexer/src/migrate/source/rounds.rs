//! The rounds: memory is copied while the guest runs, again and again, until the rest fits the downtime.
//!
//! Owns the decision when to stop the guest, and what to do if that moment does not come. A round tells what the map knows to be different from what the
//! destination has. Pages that are stale (written since they were read) are left for later rounds; those that are written all the time
//! are never sent before the end.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use memdex_wire::{
    Fingerprint, PAGE_SIZE,
    migration::OnNoConverge,
    page::PageState,
    transfer::{ToSource, ZERO},
};
use tokio::{sync::Mutex, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Stop,
    copy::Copier,
    reins::{Held, Reins},
    switch_over::out_of_turn,
    throttle::Throttle,
};
use crate::{
    host::Vm,
    map::{LayoutRegion, MapSnapshot},
    migrate::{ledger::Ledger, monitor::Monitor},
    units::bytes,
};

/// What reading an unsettled page again takes.
pub(super) const REREAD: Duration = Duration::from_nanos(1500);
/// Shortest time between two moments at which the guest is stopped so that its direct I/O comes to an end.
const DRAIN_EVERY: Duration = Duration::from_secs(1);
/// So often it is tried although the downtime would do without.
const TRIES: u32 = 2;
/// Time between two rounds that have next to nothing to tell: pages written now and then settle meanwhile.
const PAUSE: Duration = Duration::from_millis(50);
/// What stopping, the last look at the page table and the device state take, whatever there is to send.
const FIXED: Duration = Duration::from_millis(15);
/// Stale pages that are not worth settling before the guest is stopped.
const FEW: u64 = 64;
/// Longest wait for them to be settled.
const SETTLE: Duration = Duration::from_secs(1);
/// They are not settled again within this time.
const LATELY: Duration = Duration::from_secs(1);
/// What reading, hashing and writing one of the last pages takes, both ends together.
const PAGE: Duration = Duration::from_micros(6);
/// What a page on the wire takes before anything was measured, in bytes.
const UNMEASURED: f64 = 2048.0;
/// Bytes a second before anything was measured.
const FAST: f64 = 1e9;
/// Bytes on the wire for a page that is only named.
const NAMED: f64 = 17.0;
/// It does not converge if the rest has not shrunk by a tenth for so long, and so many rounds.
const HOPE: (Duration, u32) = (Duration::from_secs(3), 5);
/// Shares of the guest's time that are taken away, one after the other, in percent.
const THROTTLES: [u8; 4] = [30, 60, 80, 95];

/// What the rounds go by.
pub(super) struct Rounds {
    pub(super) vm: Arc<Vm>,
    pub(super) monitor: Arc<Mutex<Monitor>>,
    pub(super) reins: Arc<Reins>,
    pub(super) downtime: Duration,
    pub(super) on_no_converge: OnNoConverge,
    pub(super) throttle: Option<Throttle>,
    pub(super) throttled: usize,
    /// The guest ran when this began.
    pub(super) may_throttle: bool,
    /// The guest may be stopped for a moment to let its direct I/O come to an end.
    pub(super) may_drain: bool,
    /// Guest memory as it was when the ledger was made.
    pub(super) regions: Vec<LayoutRegion>,
}

/// What is left to do.
struct Rest {
    /// What the map knows to be different.
    differing: Vec<(u32, Fingerprint)>,
    /// Pages whose content is not known right now.
    stale: u64,
    /// Pages that have to be read again when the guest stands still, because direct I/O may have changed them. Nearly all will be what they were.
    unsettled: u64,
}

impl Rest {
    fn pages(&self) -> u64 {
        self.differing.len() as u64 + self.stale
    }
}

/// Compares what the map says with what the destination has.
fn rest(snapshot: &MapSnapshot, ledger: &Ledger) -> Rest {
    let mut rest = Rest { differing: Vec::new(), stale: 0, unsettled: snapshot.counts().unsettled };
    // Should there be more pages all of a sudden, that is noticed elsewhere.
    rest.stale += u64::from(snapshot.pages().abs_diff(ledger.pages()));
    for (page, view) in snapshot.views(0..ledger.pages()) {
        // A page that is not settled is sent like any other: should it turn out to be different, the last sync finds it.
        let content = match view.held {
            PageState::Stale => {
                rest.stale += 1;
                continue;
            }
            PageState::Absent | PageState::Zero => ZERO,
            PageState::Current => view.fingerprint.unwrap_or(ZERO),
        };
        if ledger.get(page) != content {
            rest.differing.push((page, content));
        }
    }
    rest
}

/// What has to be told once the guest stands still and every page is known.
pub(super) fn last(vm: &Vm, ledger: &Ledger) -> Result<Vec<(u32, Fingerprint)>, u64> {
    let rest = rest(&vm.snapshot(), ledger);
    let unknown = rest.stale + rest.unsettled;
    if unknown > 0 { Err(unknown) } else { Ok(rest.differing) }
}

impl Rounds {
    /// Copies until the guest may be stopped. It is not throttled any more when this returns well.
    pub(super) async fn run(&mut self, copier: &mut Copier) -> Result<(), Stop> {
        let began = Instant::now();
        let mut best = (u64::MAX, Instant::now(), 0u32);
        let (mut settled, mut just_settled) = (None::<Instant>, false);
        let (mut drains, mut drained) = (0, began.checked_sub(DRAIN_EVERY).unwrap_or(began));
        let (mut gone_stale, mut dirty_rate, mut looked) = (self.gone_stale(), 0.0, Instant::now());
        loop {
            let before = rest(&self.vm.snapshot(), &copier.ledger);
            if !before.differing.is_empty() {
                copier.record.rounds.fetch_add(1, Relaxed);
                if settled.is_none() && self.first_pass_done() && before.differing.len() as u64 > before.stale
                {
                    self.tell_and_settle(copier, &before.differing).await?;
                    (settled, just_settled) = (Some(Instant::now()), true);
                    continue;
                }
                copier.tell(&before.differing, false, &CancellationToken::new()).await?;
            }
            if self.vm.stopped().is_some() {
                return Err(Stop::failed("the VM has ended"));
            }
            if self.vm.snapshot().layout().regions() != self.regions {
                return Err(Stop::failed(
                    "memory was plugged in or out during the migration: start it again",
                ));
            }
            // Calls it off, and notices an end of the link, even if there is nothing to tell.
            let pause = before.differing.len() < 64 && !std::mem::take(&mut just_settled);
            copier.meanwhile(sleep(if pause { PAUSE } else { Duration::ZERO })).await?;
            let rest = rest(&self.vm.snapshot(), &copier.ledger);
            let seconds = looked.elapsed().as_secs_f64();
            if seconds > 0.2 {
                dirty_rate = (self.gone_stale() - gone_stale) as f64 / seconds;
                (gone_stale, looked) = (self.gone_stale(), Instant::now());
            }
            let wire = copier.record.wire.load(Relaxed);
            let rate = Self::rate(copier);
            let needed = needed(copier, &rest, wire, rate);
            copier.record.set_progress(|progress| {
                progress.remaining_bytes = bytes(rest.pages());
                progress.rate = (wire as f64 / began.elapsed().as_secs_f64().max(0.001)) as u64;
                progress.dirty_rate = dirty_rate as u64;
                progress.expected_ms = Some(needed.as_millis() as u64);
            });
            let first_pass_done = self.first_pass_done();
            let lately = settled.is_some_and(|at| at.elapsed() < LATELY);
            if first_pass_done && needed <= self.downtime && rest.stale > FEW && !lately {
                copier.meanwhile(self.settle()).await?;
                (settled, just_settled) = (Some(Instant::now()), true);
                continue;
            }
            let reread = REREAD * u32::try_from(rest.unsettled).unwrap_or(u32::MAX);
            // Even if they fit the downtime a try is worth it: it is the guest that waits.
            let worth_it = needed > self.downtime || drains < TRIES;
            if first_pass_done && self.may_drain && reread > self.downtime / 10 && worth_it {
                if drained.elapsed() >= DRAIN_EVERY {
                    (drains, drained) = (drains + 1, Instant::now());
                    self.drain().await?;
                }
                copier.meanwhile(sleep(PAUSE)).await?;
            } else if first_pass_done && needed <= self.downtime {
                // Now, so that next to nothing is left to digest while the guest stands still.
                copier.ledger.root();
                return self.end_throttle(copier).await;
            }
            let left = rest.pages() + rest.unsettled;
            if !first_pass_done || left < best.0.saturating_sub(best.0 / 10) {
                best = (left, Instant::now(), 0);
                continue;
            }
            best.2 += 1;
            if best.1.elapsed() < HOPE.0 || best.2 < HOPE.1 {
                continue;
            }
            let figures = format!(
                "the guest writes {dirty_rate:.0} pages a second, the link takes {:.1} MB a second, {} pages are left after {} rounds, and to send them would stop the guest for {} ms instead of {} ms",
                rate / 1e6,
                rest.pages(),
                copier.record.rounds.load(Relaxed),
                needed.as_millis(),
                self.downtime.as_millis()
            );
            if self.no_convergence(copier, &figures).await? {
                return self.end_throttle(copier).await;
            }
            best = (u64::MAX, Instant::now(), 0);
        }
    }

    /// Pages that are written now and then are looked at seldom. Once more all of them, so that few are left when the guest stands still. If it writes so much
    /// that this is not done in time, it is not: what is stale counts in what would be left.
    async fn settle(&self) {
        if let Err(error) = self.vm.sync(SETTLE).await {
            tracing::debug!(vm = self.vm.id(), %error, "pages were not settled before the switch-over");
        }
    }

    /// Tells, and settles while the last of it is on its way: so what has to be told next is known when this is told.
    async fn tell_and_settle(
        &self,
        copier: &mut Copier,
        contents: &[(u32, Fingerprint)],
    ) -> Result<(), Stop> {
        let nearly = CancellationToken::new();
        let settle = async {
            nearly.cancelled().await;
            self.settle().await;
        };
        tokio::pin!(settle);
        let mut settled = false;
        {
            let tell = copier.tell(contents, false, &nearly);
            tokio::pin!(tell);
            loop {
                tokio::select! {
                    told = &mut tell => break told?,
                    () = &mut settle, if !settled => settled = true,
                }
            }
        }
        if settled { Ok(()) } else { copier.meanwhile(settle).await }
    }

    /// Stops the guest for a moment, so that QEMU drains its I/O: then the unsettled pages need not wait to be read once more, and few are
    /// left to be read when the guest stands still.
    async fn drain(&self) -> Result<(), Stop> {
        let Ok(mark) = self.vm.close_unsettled().await else { return Ok(()) };
        let mut monitor = self.monitor.lock().await;
        // One that is paused, by whomever, has drained its I/O.
        if monitor.status().await? == "running" {
            self.reins.hold(Held::Stopped)?;
            monitor.stop().await?;
            monitor.cont().await?;
            self.reins.hold(Held::No)?;
        }
        drop(monitor);
        // If it takes longer, what is left counts in what would be left.
        let _ = self.vm.drained(mark, SETTLE).await;
        Ok(())
    }

    /// Every page has been looked at once.
    fn first_pass_done(&self) -> bool {
        let indexed = self.vm.info().indexed;
        indexed.total > 0 && indexed.done >= indexed.total
    }

    /// It does not converge. True if the guest is to be stopped all the same.
    async fn no_convergence(&mut self, copier: &Copier, figures: &str) -> Result<bool, Stop> {
        match self.on_no_converge {
            OnNoConverge::Abort => Err(Stop::Aborted(format!(
                "it does not converge: {figures}; allow a longer --downtime, more bandwidth, or choose --on-no-converge throttle or stop"
            ))),
            OnNoConverge::Stop => {
                copier.record.say(format!("it does not converge, so the guest is stopped: {figures}"));
                Ok(true)
            }
            OnNoConverge::Throttle if !self.may_throttle => Err(Stop::Aborted(format!(
                "it does not converge, and the guest, which was paused when this began, is not slowed down: {figures}; start it again"
            ))),
            OnNoConverge::Throttle => {
                let Some(percent) = THROTTLES.get(self.throttled).copied() else {
                    return Err(Stop::Aborted(format!(
                        "it does not converge even with the guest slowed down by {} %: {figures}",
                        THROTTLES[THROTTLES.len() - 1]
                    )));
                };
                self.throttled += 1;
                copier.record.say(format!(
                    "it does not converge, so the guest is slowed down by {percent} %: {figures}"
                ));
                self.end_throttle(copier).await?;
                let (monitor, reins) = (Arc::clone(&self.monitor), Arc::clone(&self.reins));
                self.throttle = Some(Throttle::start(monitor, reins, percent));
                copier.record.set_progress(|progress| progress.throttle_percent = percent);
                Ok(false)
            }
        }
    }

    /// Lets the guest run as it likes again.
    pub(super) async fn end_throttle(&mut self, copier: &Copier) -> Result<(), Stop> {
        let Some(throttle) = self.throttle.take() else { return Ok(()) };
        let ended = throttle.end().await;
        copier.record.set_progress(|progress| progress.throttle_percent = 0);
        if ended {
            Ok(())
        } else {
            Err(Stop::failed("QEMU does not answer, and the guest was slowed down: it may stand still"))
        }
    }

    fn gone_stale(&self) -> u64 {
        self.vm.counters.pages_gone_stale.get()
    }

    /// Bytes a second that the link takes.
    fn rate(copier: &Copier) -> f64 {
        let cap = copier.pace.rate().map_or(f64::INFINITY, |cap| cap as f64);
        copier.streams.rate().unwrap_or(FAST).min(cap)
    }
}

/// How long the guest would stand still if it were stopped now.
fn needed(copier: &Copier, rest: &Rest, wire: u64, rate: f64) -> Duration {
    let (sent, matched) = (copier.record.sent.load(Relaxed), copier.record.matched.load(Relaxed));
    let contents = (wire as f64 - matched as f64 * NAMED).max(0.0);
    let each = if sent > 256 { contents / sent as f64 } else { UNMEASURED };
    let on_wire = rest.pages() as f64 * each.min(PAGE_SIZE as f64 * 1.1);
    let pages = u32::try_from(rest.pages()).unwrap_or(u32::MAX);
    let unsettled = u32::try_from(rest.unsettled).unwrap_or(u32::MAX);
    FIXED + PAGE * pages + REREAD * unsettled + Duration::from_secs_f64((on_wire / rate.max(1.0)).min(1e6))
}

impl Copier {
    /// Waits for something, and notices meanwhile if it is called off or the other side is gone.
    pub(super) async fn meanwhile(&mut self, something: impl Future<Output = ()>) -> Result<(), Stop> {
        tokio::select! {
            said = self.hear_nothing() => said,
            () = something => Ok(()),
        }
    }

    /// What it has been asked for it may say; anything else is an end. Ends only then.
    async fn hear_nothing(&mut self) -> Result<(), Stop> {
        loop {
            match self.hear().await? {
                ToSource::DeviceReady if !self.device_ready => self.device_ready = true,
                ToSource::DeviceLoaded if self.may_load && !self.device_loaded => self.device_loaded = true,
                _ => return Err(out_of_turn()),
            }
        }
    }
}
