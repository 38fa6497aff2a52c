//! The switch-over: from `stop` here to the guest running there.
//!
//! Owns the order of things while the guest stands still:
//!
//! 1. **stop.** QEMU stops the vCPUs and drains its I/O; when it answers, nothing of it writes the guest's memory any more, no disk either.
//! 2. **sync.** The tracker audits the whole page table and settles what is stale; memory that cannot be watched exactly, and pages that a disk may have written
//!    unseen (the unsettled ones), are read again. Afterwards no page is stale or unsettled, or the migration fails.
//! 3. **finish.** What differs from what the destination has confirmed is sent, unasked.
//! 4. **compare.** Both ends digest all their fingerprints. Only if they agree does anything go on.
//! 5. **device state.** QEMU's own migration, without memory, through the connection that is there anyway.
//! 6. **hand over.** See [`crate::migrate::resolve`].
//!
//! Up to and with 5 any failure, time-out or abort ends with the guest running here.

use std::{
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::{
    job::SyncReport,
    migration::Phase,
    transfer::{ToDestination, ToSource},
};
use tokio::{io::AsyncReadExt, net::UnixStream};
use tokio_util::sync::CancellationToken;

use super::{Held, Outgoing, Stop, checks::under_way, reading, rounds::last};
use crate::{
    host::Vm,
    migrate::{
        device::{MAX_READ, Packer},
        qmp::QmpError,
    },
};

/// Longest wait for the tracker to settle everything.
const SYNC: Duration = Duration::from_secs(60);
/// How often it is asked again if pages are stale afterwards: writes that had been under way.
const SYNCS: u32 = 3;
/// Longest wait for QEMU to write its device state.
const DEVICE: Duration = Duration::from_secs(30);

impl Outgoing {
    /// Steps 1 to 5.
    pub(super) async fn switch_over(&mut self) -> Result<(), Stop> {
        let record = Arc::clone(&self.copier.record);
        record.enter(Phase::Stopping);
        // Somebody may have paused or resumed it since. What counts is now: it is let run there if it runs here.
        {
            let mut monitor = self.monitor.lock().await;
            self.reins.set_running(match monitor.status().await?.as_str() {
                "running" => true,
                "paused" => false,
                other => {
                    return Err(Stop::failed(format!(
                        "the VM is {other} now: only one that runs or is paused can be moved"
                    )));
                }
            });
            // What is called off if this fails has to be ours.
            let (migration, _) = monitor.migration().await?;
            if under_way(&migration) {
                return Err(Stop::failed(format!(
                    "QEMU has a migration of its own under way now ({migration})"
                )));
            }
        }
        self.reins.hold(Held::Stopped)?;
        record.blackout_begins();
        let began = Instant::now();
        {
            let mut monitor = self.monitor.lock().await;
            // Also if it is paused: QEMU's own migration would carry over that it runs, if somebody resumed it in between.
            monitor.stop().await?;
            let state = monitor.status().await?;
            if state != "paused" {
                return Err(Stop::failed(format!("the VM is {state} after it was told to stop")));
            }
        }
        let stopped = began.elapsed();
        // Its answer comes while we are busy with something else.
        self.copier.speaker.say(&ToDestination::PrepareDevice).await?;

        record.enter(Phase::Syncing);
        let mut rest = Err(0);
        let mut unsettled = 0;
        for _ in 0..SYNCS {
            unsettled += self.sync_meanwhile().await?.unsettled_read;
            rest = last(&self.vm, &self.copier.ledger);
            if rest.is_ok() {
                break;
            }
        }
        let rest = rest.map_err(|pages| {
            Stop::failed(format!(
                "{pages} pages of the VM are still being written although it is stopped: something else writes its memory (see `memdex vms`)"
            ))
        })?;
        let synced = began.elapsed();

        record.enter(Phase::Finishing);
        self.copier.tell(&rest, true, &CancellationToken::new()).await?;
        match last(&self.vm, &self.copier.ledger) {
            Ok(left) if left.is_empty() => {}
            _ => return Err(Stop::failed("the VM's memory changes although it is stopped")),
        }
        let finished = began.elapsed();

        record.enter(Phase::Comparing);
        let ours = self.copier.ledger.root();
        self.copier.speaker.say(&ToDestination::Digest(ours)).await?;
        // The first thing it was asked for since it was told to make ready.
        if !self.copier.device_ready && self.copier.hear_in_time().await? != ToSource::DeviceReady {
            return Err(out_of_turn());
        }
        match self.copier.hear_in_time().await? {
            ToSource::Digest(theirs) if theirs == ours => {}
            ToSource::Digest(_) => {
                return Err(Stop::failed(
                    "the destination has other memory than the guest: the digests differ",
                ));
            }
            _ => return Err(out_of_turn()),
        }
        let compared = began.elapsed();

        record.enter(Phase::DeviceState);
        let bytes = self.device_state().await?;
        let ms = |at: Duration| at.as_secs_f64() * 1e3;
        record.say(format!(
            "stopped in {:.1} ms, known in {:.1} ({unsettled} unsettled pages read again), {} pages sent in {:.1}, compared in {:.1}, {bytes} bytes of device state in {:.1} ms",
            ms(stopped),
            ms(synced - stopped),
            rest.len(),
            ms(finished - synced),
            ms(compared - finished),
            ms(began.elapsed() - compared),
        ));
        Ok(())
    }

    /// QEMU's device state, from its monitor to the other one's. The destination has been told to make ready for it.
    async fn device_state(&mut self) -> Result<u64, Stop> {
        let speaker = self.copier.speaker.clone();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(Stop::failed)?;
        ours.set_nonblocking(true).map_err(Stop::failed)?;
        let mut ours = UnixStream::from_std(ours).map_err(Stop::failed)?;
        let monitor = Arc::clone(&self.monitor);
        // QEMU refuses that while it migrates by somebody else's order: then nothing is ours to be called off.
        monitor.lock().await.ignore_shared(true).await?;
        self.reins.hold(Held::Saving)?;
        // What QEMU writes has to be read before it has answered: its migration thread may get hold of QEMU's lock first, and keeps it while it
        // waits for room in the socket. Then nobody is left in there to send the answer.
        let tell = async move {
            let told = monitor.lock().await.send_state(theirs.as_fd()).await;
            // QEMU has its own descriptor now; ours would keep the end from being seen.
            drop(theirs);
            told
        };
        tokio::pin!(tell);
        let (mut told, mut sent) = (false, 0);
        let mut packer = Packer::new().map_err(Stop::failed)?;
        let mut piece = vec![0; MAX_READ];
        let deadline = tokio::time::Instant::now() + DEVICE;
        loop {
            let read = tokio::select! {
                result = &mut tell, if !told => {
                    if let Err(error) = result {
                        if let QmpError::Refused { .. } = error {
                            self.reins.hold(Held::Stopped)?;
                        }
                        return Err(error.into());
                    }
                    told = true;
                    continue;
                }
                read = tokio::time::timeout_at(deadline, ours.read(&mut piece)) => read,
                said = self.copier.hear() => return said.and_then(|_| Err(out_of_turn())),
            };
            let read = match read {
                Ok(Ok(0)) => break,
                Ok(Ok(bytes)) => &piece[..bytes],
                Ok(Err(error)) => {
                    return Err(Stop::failed(format!("QEMU's device state cannot be read: {error}")));
                }
                Err(_) => return Err(Stop::failed("QEMU does not write its device state in time")),
            };
            sent += read.len() as u64;
            let packed = packer.pack(read).map_err(Stop::failed)?;
            speaker.say(&ToDestination::Device(packed)).await?;
        }
        speaker.say(&ToDestination::DeviceEnd).await?;
        // While the destination loads it: QEMU must have come to an end, and must not have written the guest's memory after it was compared.
        self.monitor.lock().await.migration_complete(deadline.into_std()).await.map_err(Stop::failed)?;
        self.copier.may_load = true;
        self.sync_meanwhile().await?;
        if !last(&self.vm, &self.copier.ledger).is_ok_and(|left| left.is_empty()) {
            return Err(Stop::failed("QEMU has changed the guest's memory while it saved its device state"));
        }
        if self.copier.device_loaded || self.copier.hear_in_time().await? == ToSource::DeviceLoaded {
            Ok(sent)
        } else {
            Err(out_of_turn())
        }
    }

    /// A sync may take long, if all memory has to be read: if the destination goes away meanwhile, or somebody calls it off, the guest is not to wait for it.
    async fn sync_meanwhile(&mut self) -> Result<SyncReport, Stop> {
        let (vm, mut report) = (Arc::clone(&self.vm), None);
        self.copier.meanwhile(async { report = Some(sync(&vm).await) }).await?;
        report.unwrap_or_else(|| Err(out_of_turn()))
    }
}

async fn sync(vm: &Vm) -> Result<SyncReport, Stop> {
    vm.sync_still(SYNC + reading(vm))
        .await
        .map_err(|error| Stop::failed(format!("the VM's memory cannot be settled: {error}")))
}

pub(super) fn out_of_turn() -> Stop {
    Stop::failed("the destination says something out of turn")
}
