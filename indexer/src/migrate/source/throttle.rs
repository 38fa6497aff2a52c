//! Slowing a guest down: it is stopped for a share of every period, and let run for the rest.
//!
//! Owns the beat. The guest runs when this ends, however it ends: the last thing that is done is `cont`, tried until QEMU takes it or is gone, and the
//! guard's orders say so too.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::migrate::{monitor::Monitor, qmp::QmpError};

/// Length of a period: short enough that nothing in the guest times out.
const PERIOD: Duration = Duration::from_millis(100);

/// A throttle at work.
pub(super) struct Throttle {
    stop: CancellationToken,
    beat: Option<JoinHandle<()>>,
}

impl Throttle {
    /// Takes this share of the guest's time away, in percent.
    pub(super) fn start(monitor: Arc<Mutex<Monitor>>, percent: u8) -> Self {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let held = PERIOD * u32::from(percent) / 100;
        let beat = tokio::spawn(async move {
            while !token.is_cancelled() {
                let stopped = monitor.lock().await.stop().await;
                if let Err(QmpError::Lost(_)) = stopped {
                    return;
                }
                sleep(held).await;
                // Also if it did not say that it has stopped: it may do so yet.
                while let Err(error) = monitor.lock().await.cont().await {
                    if let QmpError::Lost(_) = error {
                        return;
                    }
                    sleep(PERIOD).await;
                }
                tokio::select! {
                    () = sleep(PERIOD - held) => {}
                    () = token.cancelled() => {}
                }
            }
        });
        Self { stop, beat: Some(beat) }
    }

    /// Takes it back. The guest runs when this returns.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        if let Some(beat) = self.beat.take() {
            let _ = beat.await;
        }
    }
}

impl Drop for Throttle {
    /// Forgotten by somebody who panicked, say: it ends by itself.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
