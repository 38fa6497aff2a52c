//! How fast a migration may send: its own cap, and a fair share of the host's. Owns the arithmetic of time and bytes.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What may go out at once after a pause, as time at full rate.
const BURST: Duration = Duration::from_millis(5);

/// The host's cap and how many share it.
#[derive(Debug, Default)]
pub struct HostPace {
    /// Bytes a second, 0 for no cap.
    cap: u64,
    sending: AtomicU64,
}

impl HostPace {
    /// All migrations of this host together send at most `cap` bytes a second.
    #[must_use]
    pub fn new(cap: Option<u64>) -> Arc<Self> {
        Arc::new(Self { cap: cap.unwrap_or(0), sending: AtomicU64::new(0) })
    }

    /// One more that sends; it counts until it is dropped.
    #[must_use]
    pub fn join(self: &Arc<Self>, cap: Option<u64>) -> Pace {
        self.sending.fetch_add(1, Relaxed);
        Pace { host: Arc::clone(self), cap: cap.unwrap_or(0), free_at: Mutex::new(Instant::now()) }
    }
}

/// The pace of one migration, shared by all its connections.
#[derive(Debug)]
pub struct Pace {
    host: Arc<HostPace>,
    /// Bytes a second, 0 for no cap.
    cap: u64,
    /// When all that was let through has gone out at the rate of its time.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// Bytes a second right now; `None` if there is no cap.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        let share = self.host.cap / self.host.sending.load(Relaxed).max(1);
        match (self.cap, share) {
            (0, 0) => None,
            (own, 0) => Some(own),
            (0, share) => Some(share),
            (own, share) => Some(own.min(share)),
        }
    }

    /// Takes room for `bytes`. They may go out after the time returned.
    pub fn take(&self, bytes: usize) -> Duration {
        let Some(rate) = self.rate() else { return Duration::ZERO };
        let now = Instant::now();
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*free_at).max(now.checked_sub(BURST).unwrap_or(now));
        *free_at = begin + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        // What goes out now keeps those after it waiting, not itself.
        begin.saturating_duration_since(now)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.host.sending.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_fair_and_the_own_cap_counts() {
        let host = HostPace::new(Some(900));
        let a = host.join(None);
        assert_eq!(a.rate(), Some(900));
        let b = host.join(Some(100));
        let c = host.join(None);
        assert_eq!((a.rate(), b.rate(), c.rate()), (Some(300), Some(100), Some(300)));
        drop((b, c));
        assert_eq!(a.rate(), Some(900));
        assert_eq!(HostPace::new(None).join(None).rate(), None);
    }

    #[test]
    fn waiting_grows_with_what_was_taken() {
        let pace = HostPace::new(None).join(Some(1_000_000));
        let mut waited = Duration::ZERO;
        for _ in 0..10 {
            waited = pace.take(100_000);
        }
        // Nine pieces of a tenth of a second each are before the last one, less the burst.
        assert!(waited > Duration::from_millis(880) && waited <= Duration::from_millis(900), "{waited:?}");
    }
}
