//! The way out of a migration: the guest is handed over, or put back.
//!
//! Owns what becomes of the guest; the guard's orders ([`super::reins`]) say the same for the case that we die. See [`crate::migrate::resolve`] for why it never
//! runs twice.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::{
    migration::{AtSource, Phase},
    transfer::{ToDestination, ToSource},
};
use tokio::time::{sleep, timeout};

use super::{Held, Outgoing, Stop, copy::gave_up};
use crate::migrate::{
    Shared,
    link::{BEAT, SILENCE},
    qmp::QmpError,
    resolve::{Verdict, who_runs},
};

/// How long is tried to let the guest run again.
const PUT_BACK: Duration = Duration::from_secs(60);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(20);

impl Outgoing {
    /// Hands over, or puts the guest back.
    pub(super) async fn finish(mut self, shared: &Shared, moved: Result<(), Stop>) -> Result<(), Stop> {
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
                let (speaker, why) = (self.copier.speaker.clone(), why.clone());
                // Nobody has to be asked any more.
                self.reins.ask_nobody();
                // The guest first, but the destination need not wait for it.
                let goodbye = async {
                    let _ = timeout(BEAT, speaker.say(&ToDestination::Abort(why.clone()))).await;
                    let _ = timeout(BEAT, speaker.say(&ToDestination::Goodbye)).await;
                };
                let (put_back, ()) = tokio::join!(self.put_back(), goodbye);
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
        self.reins.hand_over(&self.destination)?;
        let said = self.copier.speaker.say(&ToDestination::HandOver { run: self.reins.running() }).await;
        let heard = match said {
            Ok(()) => timeout(SILENCE, self.copier.frames.recv()).await,
            Err(error) => Ok(Some(Err(error))),
        };
        match heard {
            Ok(Some(Ok(ToSource::Running))) => {
                // Once it has heard that we know, it need not know any more.
                self.reins.gone();
                let _ = timeout(BEAT, self.copier.speaker.say(&ToDestination::Goodbye)).await;
                return Ok(());
            }
            // It says so only after it has decided, once and for all, and after its VMM has ended.
            Ok(Some(Ok(ToSource::Fail(why)))) => {
                return Err(gave_up(&why));
            }
            _ => {}
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
                self.reins.leave_to_guard();
                std::future::pending().await
            }
        }
    }

    /// The guest runs there.
    async fn gone(&mut self) {
        self.vm.set_moved_away();
        let mut monitor = self.monitor.lock().await;
        let told = match self.request.at_source {
            AtSource::Quit => monitor.quit().await,
            AtSource::Pause => monitor.ignore_shared(self.reins.ignored_shared()).await,
        };
        if let Err(error) = told {
            self.copier.record.say(format!("the VMM that is left here: {error}"));
        }
        self.reins.release();
    }

    /// The guest runs on here, as if nothing had been.
    async fn put_back(&mut self) -> Result<(), String> {
        let mut monitor = self.monitor.lock().await;
        let begun = Instant::now();
        let mut result = Ok(());
        let (held, running) = (self.reins.held(), self.reins.running());
        // Whatever QEMU migrates before that is somebody else's.
        if held == Held::Saving {
            let _ = monitor.cancel().await;
        }
        if held != Held::No && running {
            let mut told = Ok(());
            loop {
                match monitor.status().await {
                    Ok(state) if state == "running" => break,
                    Ok(state) if !held.ours().contains(&state.as_str()) => {
                        self.copier.record.say(format!("the VM is {state}, so it is not let run again"));
                        break;
                    }
                    Err(error @ QmpError::Lost(_)) => {
                        result = Err(format!("and the VM has ended: {error}"));
                        break;
                    }
                    _ if begun.elapsed() > PUT_BACK => {
                        let why = told.err().map_or_else(String::new, |error: QmpError| error.to_string());
                        result = Err(format!(
                            "and the guest could not be let run again here (a guard goes on trying): {why}"
                        ));
                        break;
                    }
                    // What it is told now it would do whenever it can, whatever state it is in by then.
                    Err(error) => {
                        told = Err(error);
                        sleep(PAUSE).await;
                        continue;
                    }
                    Ok(_) => {}
                }
                told = monitor.cont().await;
                if told.is_err() {
                    sleep(PAUSE).await;
                }
            }
            self.copier.record.blackout_ends();
        } else if held == Held::Saving && monitor.status().await.is_ok_and(|state| state == "postmigrate") {
            self.copier.record.say(
                "the guest is here, paused as it was; QEMU shows it as postmigrate, and `cont` lets it run whenever it is to",
            );
        }
        if let Err(error) = monitor.restore_ignore_shared(self.reins.ignored_shared()).await {
            self.copier.record.say(format!("x-ignore-shared could not be set back: {error}"));
        }
        // If it could not be put back, the guard goes on trying.
        if result.is_ok() {
            self.reins.release();
        } else {
            self.reins.leave_to_guard();
        }
        result
    }
}
