//! What was paid lately: a sum over the last some seconds, in slots of one second.

use std::time::{Duration, Instant};

/// Seconds that are looked back at.
const SLOTS: usize = 10;
const SLOT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    /// Nanoseconds paid in each of the last seconds; the present one is at `now`.
    slots: [u64; SLOTS],
    now: usize,
    began: Instant,
    /// Seconds that have been counted from their beginning to their end, at most all of them.
    full: usize,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { slots: [0; SLOTS], now: 0, began: now, full: 0 }
    }

    /// So much has been paid.
    pub(super) fn add(&mut self, nanoseconds: u64, now: Instant) {
        self.advance(now);
        self.slots[self.now] = self.slots[self.now].saturating_add(nanoseconds);
    }

    /// What was paid, in millionths of the time.
    pub(super) fn ppm(&mut self, now: Instant) -> u64 {
        self.advance(now);
        let sum: u64 = self.slots.iter().fold(0, |sum, slot| sum.saturating_add(*slot));
        let time = SLOT * self.full as u32 + now.saturating_duration_since(self.began);
        // Right at the beginning a little counts for the whole of a second.
        let time = time.max(SLOT).as_nanos();
        u64::try_from(u128::from(sum) * 1_000_000 / time).unwrap_or(u64::MAX)
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_nanos() / SLOT.as_nanos();
        let seconds = usize::try_from(passed).unwrap_or(usize::MAX);
        for _ in 0..seconds.min(SLOTS) {
            self.now = (self.now + 1) % SLOTS;
            self.slots[self.now] = 0;
        }
        self.full = self.full.saturating_add(seconds).min(SLOTS - 1);
        self.began += SLOT * u32::try_from(seconds).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_the_share_of_the_last_ten_seconds() {
        let start = Instant::now();
        let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
        let mut meter = Meter::new(start);
        assert_eq!(meter.ppm(at(0)), 0);
        // A hundredth of the time, for twenty seconds.
        for tenth in 0..200 {
            meter.add(1_000_000, at(tenth));
        }
        let ppm = meter.ppm(at(200));
        assert!((9_900..=11_000).contains(&ppm), "{ppm}");
        // Half of it is still within sight five seconds later, none after ten.
        let ppm = meter.ppm(at(250));
        assert!((4_000..=6_000).contains(&ppm), "{ppm}");
        assert_eq!(meter.ppm(at(310)), 0);
        meter.add(5_000_000, at(100_000));
        assert!(meter.ppm(at(100_001)) > 0);
    }
}
