//! What a guest pays for being watched, and the budget for it. Pure bookkeeping: told what was done and when; only [`price`] asks the kernel, once.
//!
//! # What costs, and when it is paid
//!
//! - A *write to an armed page* takes a fault, once: then the page is writable until it is armed again. Arming memory that nobody writes costs nothing.
//! - An *arm run*, one call for pages in a row, interrupts the vCPUs that have the memory in their translation caches.
//! - *Attaching* stops a thread of the VMM. It is shown, and nothing is done about it: leaving pages unread afterwards would not undo it, and on a
//!   crowded machine, where it takes longest, they would be stale for ten seconds.
//!
//! Scans and marks cost the daemon, not the guest: they change nothing in its page table (`docs/guest-cost.md` has the figures).
//!
//! What the guest has paid is counted when a fault is *seen* ([`GuestCost::seen_written`]): that is the figure shown to people. What it may come to pay is
//! decided when a page is armed *again*, for this is where there is a choice. So the [bucket](bucket) is charged there: the price of the next fault, and of the
//! run. In the long run the two are the same, because a page has to be armed again before it can take another fault. Pages that are armed for the first time are
//! free; each of them can take one fault, whatever the budget.
//!
//! Where the bucket is empty a page is *held*: it is stale and writable, and costs nothing until its turn comes (`watch/held.rs`). Hot pages get only what is above half of the
//! bucket, so a guest that writes the same pages all the time does not make the others stale. Nobody who waits for an answer is held up: what is armed for a sync, or
//! while the VM is being moved, is taken from the bucket, whether it is there or not.

mod bucket;
mod meter;
mod price;

use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use self::{bucket::Bucket, meter::Meter};
use super::queue::runs;
use crate::units::PageRange;
pub use price::Prices;

/// The bucket holds as much as the budget gives in this time.
const BURST: Duration = Duration::from_secs(20);
/// What was overdrawn is paid back in at most this time; what is more is given up.
const DEBT: Duration = Duration::from_secs(10);
/// Part of the bucket, in percent, that hot pages must leave.
const QUIET_RESERVE: u8 = 50;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct GuestCost {
    prices: Prices,
    bucket: Bucket,
    meter: Meter,
    /// Armed, and no write was seen since.
    armed: RoaringBitmap,
    /// Written while armed, and not armed since: arming them again is what the budget is about.
    faulted: RoaringBitmap,
    /// Everything is armed at once, and has been paid for then.
    whole: bool,
}

/// Which part of the bucket a page may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Quiet,
    Hot,
}

/// What can be afforded at one moment; nothing is taken from the bucket before the pages are armed.
#[derive(Debug)]
pub(super) struct Purse<'a> {
    cost: &'a GuestCost,
    quiet: i64,
    hot: i64,
}

impl GuestCost {
    pub(super) fn new(prices: Prices, share_ppm: u32, now: Instant) -> Self {
        Self {
            prices,
            bucket: Bucket::new(share_ppm, BURST, DEBT, now),
            meter: Meter::new(now),
            armed: RoaringBitmap::new(),
            faulted: RoaringBitmap::new(),
            whole: false,
        }
    }

    /// A thread of the VMM was stopped for so long, at attach.
    pub(super) fn stopped(&mut self, time: Duration, now: Instant) {
        self.meter.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), now);
    }

    /// These have been armed, each run by one call.
    pub(super) fn armed(&mut self, data: &[PageRange], now: Instant) {
        let arming = data.len() as u64 * self.prices.arm_run;
        let mut pages = RoaringBitmap::new();
        for run in data {
            pages.insert_range(run.clone());
        }
        let again = self.faulted.intersection_len(&pages);
        if again > 0 {
            self.faulted -= &pages;
        }
        self.armed |= pages;
        self.meter.add(arming, now);
        self.bucket.take(arming + again * self.prices.fault, now);
    }

    /// An earlier daemon has armed these.
    pub(super) fn inherited(&mut self, pages: &RoaringBitmap) {
        self.armed |= pages;
    }

    /// Everything has been armed at once: these pages, of which so many are in memory. Returns what that may cost the guest: a fault for each of them, because
    /// it has to find all of its memory anew. Paid for by not doing it again too soon.
    pub(super) fn armed_whole(&mut self, pages: &RoaringBitmap, resident: u64, now: Instant) -> Duration {
        self.whole = true;
        self.armed |= pages;
        let nanoseconds = resident.saturating_mul(self.prices.fault);
        self.meter.add(nanoseconds, now);
        Duration::from_nanos(nanoseconds)
    }

    /// A witness saw that these were written. Returns how many of them took a fault for it.
    pub(super) fn seen_written(&mut self, pages: &RoaringBitmap, now: Instant) -> u64 {
        let faults = pages & &self.armed;
        if faults.is_empty() {
            return 0;
        }
        self.armed -= &faults;
        let count = faults.len();
        if !self.whole {
            self.faulted |= faults;
            self.meter.add(count * self.prices.fault, now);
        }
        count
    }

    /// What may be armed now.
    pub(super) fn purse(&mut self, now: Instant) -> Purse<'_> {
        let (quiet, hot) = (self.bucket.balance(0, now), self.bucket.balance(QUIET_RESERVE, now));
        Purse { cost: self, quiet, hot }
    }

    /// What the guest has paid lately, in millionths of a vCPU.
    pub(super) fn paid_ppm(&mut self, now: Instant) -> u64 {
        self.meter.ppm(now)
    }

    /// What it may pay, in the same unit.
    pub(super) fn budget_ppm(&self) -> u64 {
        self.bucket.share_ppm()
    }

    /// Nothing is armed in these any more: something else is mapped there.
    pub(super) fn forget(&mut self, pages: PageRange) {
        for set in [&mut self.armed, &mut self.faulted] {
            set.remove_range(pages.clone());
        }
    }
}

impl Purse<'_> {
    /// Whether arming these is free of charge, but for the call.
    pub(super) fn free(&self, pages: &RoaringBitmap) -> bool {
        self.cost.faulted.is_disjoint(pages)
    }

    /// Those of `pages` that would be armed for the first time.
    pub(super) fn first_time(&self, pages: &RoaringBitmap) -> RoaringBitmap {
        pages - &self.cost.faulted
    }

    /// As many of `pages`, lowest first, as can be afforded beside what this purse has been asked for already.
    pub(super) fn afford(&mut self, pages: &RoaringBitmap, kind: Kind) -> RoaringBitmap {
        let mut granted = RoaringBitmap::new();
        let (fault, arm_run) = (price(self.cost.prices.fault), price(self.cost.prices.arm_run));
        for run in runs(pages) {
            let left = match kind {
                Kind::Quiet => self.quiet,
                Kind::Hot => self.quiet.min(self.hot),
            };
            let most = left.saturating_sub(arm_run) / fault;
            if most <= 0 {
                break;
            }
            let len = (run.end - run.start).min(u32::try_from(most).unwrap_or(u32::MAX));
            granted.insert_range(run.start..run.start + len);
            let price = arm_run + i64::from(len) * fault;
            self.quiet -= price;
            self.hot -= price;
        }
        granted
    }
}

/// A price as it is reckoned with: nothing is for free, or a purse would have no end.
fn price(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(i64::MAX).clamp(1, 1 << 40)
}

#[cfg(test)]
mod tests;
