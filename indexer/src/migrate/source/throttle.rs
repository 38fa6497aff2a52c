//! Slowing a guest down: it is stopped for a share of every period, and let run for the rest.
//!
//! Owns the beat. The guest runs when this ends, however it ends: the last thing done is `cont`, the guard's orders say so too, and a beat that
//! cannot tell QEMU anything any more means that QEMU is gone.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::migrate::monitor::Monitor;

/// Length of a period: short enough that nothing in the guest times out.
const PERIOD: Duration = Duration::from_millis(100);

/// A throttle at work.
pub(super) struct Throttle {
    stop: CancellationToken,
    beat: JoinHandle<()>,
}

impl Throttle {
    /// Takes this share of the guest's time away, in percent.
    pub(super) fn start(monitor: Arc<Mutex<Monitor>>, percent: u8) -> Self {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let held = PERIOD * u32::from(percent) / 100;
        let beat = tokio::spawn(async move {
            while !token.is_cancelled() {
                // A VM that was paused by somebody else is not ours to let run; QEMU's own states are looked at by the rounds.
                if monitor.lock().await.stop().await.is_err() {
                    break;
                }
                sleep(held).await;
                if monitor.lock().await.cont().await.is_err() {
                    break;
                }
                tokio::select! {
                    () = sleep(PERIOD - held) => {}
                    () = token.cancelled() => {}
                }
            }
        });
        Self { stop, beat }
    }

    /// Takes it back. The guest runs when this returns.
    pub(super) async fn end(self) {
        self.stop.cancel();
        let _ = self.beat.await;
    }
}
