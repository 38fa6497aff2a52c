//! Slowing a guest down: it is stopped for a share of every period, and let run for the rest.
//!
//! Owns the beat. A guest that was stopped here runs when this ends, however it ends: the last thing that is done is `cont`, tried until QEMU takes it, is gone or
//! says that the guest is not paused (it has powered itself off, say); what takes too long is left to who puts the guest back, and the guard's orders say so too. Somebody who
//! pauses it in between finds it paused; while it stands still for us, his pause cannot be told from ours.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::reins::{Held, Reins};
use crate::migrate::{monitor::Monitor, qmp::QmpError};

/// Length of a period: short enough that nothing in the guest times out.
const PERIOD: Duration = Duration::from_millis(100);
/// Longest wait for the end of a beat: longer than QEMU may take for an answer.
const END: Duration = Duration::from_secs(15);

/// A throttle at work.
pub(super) struct Throttle {
    stop: CancellationToken,
    beat: Option<JoinHandle<()>>,
}

impl Throttle {
    /// Takes this share of the guest's time away, in percent.
    pub(super) fn start(monitor: Arc<Mutex<Monitor>>, reins: Arc<Reins>, percent: u8) -> Self {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let held = PERIOD * u32::from(percent) / 100;
        let beat = tokio::spawn(async move {
            while !token.is_cancelled() {
                let stopped = {
                    let mut monitor = monitor.lock().await;
                    match monitor.status().await {
                        // Without a guard that undoes it, it is not done.
                        Ok(state) if state == "running" => match reins.hold(Held::Stopped) {
                            Ok(()) => Some(monitor.stop().await),
                            Err(_) => return,
                        },
                        // Somebody else has paused it. He lets it run, too.
                        Ok(_) => None,
                        Err(QmpError::Lost(_)) => return,
                        Err(_) => None,
                    }
                };
                match stopped {
                    Some(Err(QmpError::Lost(_))) => return,
                    // Also if it did not say that it has stopped: it may do so yet.
                    Some(_) => {
                        sleep(held).await;
                        if !let_run(&monitor, &reins).await {
                            return;
                        }
                    }
                    None => sleep(held).await,
                }
                tokio::select! {
                    () = sleep(PERIOD - held) => {}
                    () = token.cancelled() => {}
                }
            }
        });
        Self { stop, beat: Some(beat) }
    }

    /// Takes it back. The guest runs when this returns, unless QEMU says that it is not to run. False if QEMU does not answer.
    pub(super) async fn end(mut self) -> bool {
        self.stop.cancel();
        let Some(mut beat) = self.beat.take() else { return true };
        let ended = timeout(END, &mut beat).await.is_ok();
        if !ended {
            beat.abort();
        }
        ended
    }
}

/// False if there is nothing to be let run any more, or no guard that could undo the next stop.
async fn let_run(monitor: &Mutex<Monitor>, reins: &Reins) -> bool {
    loop {
        {
            let mut monitor = monitor.lock().await;
            match monitor.cont().await {
                // Before anybody else may stop it: what is said here must not be said of that.
                Ok(()) => return reins.hold(Held::No).is_ok(),
                Err(QmpError::Lost(_)) => return false,
                Err(QmpError::Refused { .. })
                    if monitor.status().await.is_ok_and(|state| state != "paused") =>
                {
                    return false;
                }
                Err(_) => {}
            }
        }
        sleep(PERIOD).await;
    }
}

impl Drop for Throttle {
    /// Forgotten by somebody who panicked, say: it ends by itself.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
