//! A token bucket: time of a vCPU that may be taken, refilled at a steady share. Pure arithmetic, told the time.
//!
//! What is granted in any stretch of time is never more than the share of that time and one burst. What *has* to be taken (a sync, a
//! guest that waits to be moved) may overdraw, down to a floor; what lies below the floor is given up, so that nobody pays for it for ever.

use std::time::{Duration, Instant};

/// Millionths: shares are counted in them, so that the arithmetic is exact.
const MILLION: i64 = 1_000_000;
/// Longest time that is counted at once, so that nothing overflows.
const LONGEST: Duration = Duration::from_secs(3600);

/// See the module. Amounts are in nanoseconds times a million.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    share_ppm: i64,
    burst: i64,
    floor: i64,
    balance: i64,
    at: Instant,
}

impl Bucket {
    /// Full at first. `burst` and `debt` are the time in which the share adds up to the largest balance, and to the largest debt.
    pub(super) fn new(share_ppm: u32, burst: Duration, debt: Duration, now: Instant) -> Self {
        let share_ppm = i64::from(share_ppm);
        let burst = nanoseconds(burst) * share_ppm;
        Self { share_ppm, burst, floor: -nanoseconds(debt) * share_ppm, balance: burst, at: now }
    }

    /// The share, in millionths.
    pub(super) fn share_ppm(&self) -> u64 {
        self.share_ppm.unsigned_abs()
    }

    /// Nanoseconds that may be taken now, above a reserve of so many hundredths of the burst; negative if there is debt.
    pub(super) fn balance(&mut self, reserve_percent: u8, now: Instant) -> i64 {
        self.refill(now);
        (self.balance - self.burst / 100 * i64::from(reserve_percent)).div_euclid(MILLION)
    }

    /// Takes so many nanoseconds, whether they are there or not.
    pub(super) fn take(&mut self, nanoseconds: u64, now: Instant) {
        self.refill(now);
        let amount = i64::try_from(nanoseconds).unwrap_or(i64::MAX).saturating_mul(MILLION);
        self.balance = self.balance.saturating_sub(amount).max(self.floor);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).min(LONGEST);
        self.balance = (self.balance + nanoseconds(passed) * self.share_ppm).min(self.burst);
        self.at = self.at.max(now);
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.min(LONGEST).as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BURST: Duration = Duration::from_secs(10);
    const DEBT: Duration = Duration::from_secs(10);

    proptest! {
        /// Whoever takes only what is there never gets more than the share and a burst, whichever stretch of time is looked at.
        #[test]
        fn no_stretch_of_time_is_over_the_budget(
            share_ppm in 1u32..=1_000_000,
            steps in prop::collection::vec((0u64..5_000_000_000, 0u64..200_000_000), 1..80),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(share_ppm, BURST, DEBT, start);
            let mut at = 0;
            let mut taken = Vec::new();
            for (wait, wish) in steps {
                at += wait;
                let now = start + Duration::from_nanos(at);
                let amount = wish.min(u64::try_from(bucket.balance(0, now)).unwrap_or(0));
                bucket.take(amount, now);
                taken.push((at, amount));
            }
            for (first, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (until, amount) in &taken[first..] {
                    sum += u128::from(*amount);
                    let time = u128::from(until - from) + BURST.as_nanos();
                    prop_assert!(sum * 1_000_000 <= time * u128::from(share_ppm));
                }
            }
        }

        /// After however much was overdrawn, the debt is paid back within the time of the floor.
        #[test]
        fn a_debt_is_paid_back_in_bounded_time(share_ppm in 1u32..=1_000_000, overdrawn in prop::collection::vec(0u64..u64::MAX / 2, 1..20)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(share_ppm, BURST, DEBT, start);
            overdrawn.iter().for_each(|amount| bucket.take(*amount, start));
            prop_assert!(bucket.balance(0, start + DEBT) >= 0);
            prop_assert!(bucket.balance(0, start + DEBT + BURST) > 0 || share_ppm < 1000);
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut bucket = Bucket::new(10_000, BURST, DEBT, start);
        bucket.take(100_000_000, start);
        assert_eq!(bucket.balance(0, start), 0);
        assert_eq!(bucket.balance(0, start.checked_sub(Duration::from_secs(50)).unwrap()), 0);
        assert_eq!(bucket.balance(0, start + Duration::from_secs(1)), 10_000_000);
        assert_eq!(bucket.balance(50, start + Duration::from_secs(1)), 10_000_000 - 50_000_000);
        assert_eq!(bucket.balance(0, start + Duration::from_secs(1000)), 100_000_000);
    }
}
