//! The content audit: known pages are read and hashed again in a random order, within a budget.
//!
//! Owns the choice of the pages and the budget; the verdict is [`super::check`]'s. The [audit](super::audit) holds the map against the
//! page table, and so relies on it; this relies on nothing but the bytes. It is what finds a write that no witness can see.
//!
//! - All blocks of 32 pages come once in a pass, in an order that is new each time: so there is no page that is never looked at, and none
//!   of which it is known when.
//! - The budget is processor time of this thread, which reads and hashes by itself: real work of the hashing threads does not wait for
//!   it. It is one budget for the host, of which each VM has an equal part. What is not used is not saved up.
//! - It has its turn when nothing else is to be done: no page is ready to be read, and nobody waits for a sync.
//! - Regions that are read again anyway, and VMs of which discovery says that something may write them unseen, are left out: there a
//!   page that differs is no mismatch, since nobody called it exact.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    time::{Duration, Instant},
};

use memdex_wire::page::PageState;

use super::{Lost, Tracker, digest::digest_piece};

/// Pages that are looked at together.
const BLOCK: u32 = 32;
/// Blocks without a known page that are passed over at once.
const EMPTY: u32 = 1024;
/// Most of the budget that is saved up: what accrues in this time.
const SAVED: Duration = Duration::from_secs(1);

/// Which blocks are next, and what may be spent.
#[derive(Debug)]
pub(super) struct ContentAudit {
    /// Share of a core that this VM may take.
    share: f64,
    /// Seconds of processor time to spend; below zero after a block that took longer than there was.
    credit: f64,
    accrued: Instant,
    order: Order,
}

impl ContentAudit {
    pub(super) fn new(now: Instant) -> Self {
        Self { share: 0.0, credit: 0.0, accrued: now, order: Order::default() }
    }

    /// What this VM may spend from now on.
    pub(super) fn set_share(&mut self, share: f64) {
        self.share = share;
    }

    fn accrue(&mut self) {
        let now = Instant::now();
        let seconds = (now - self.accrued).as_secs_f64();
        self.accrued = now;
        self.credit = (self.credit + seconds * self.share).min(SAVED.as_secs_f64() * self.share);
    }
}

/// All blocks of a VM, each once, in a random order: steps of a length that has no divisor in common with their number.
#[derive(Debug, Default)]
struct Order {
    blocks: u32,
    at: u32,
    step: u32,
    left: u32,
}

impl Order {
    fn new(blocks: u32) -> Self {
        let random = RandomState::new();
        let below = |what: u32, end: u32| (random.hash_one(what) % u64::from(end.max(1))) as u32;
        let mut step = below(1, blocks).max(1);
        while divisor(step, blocks) != 1 {
            step += 1;
        }
        Self { blocks, at: below(0, blocks), step, left: blocks }
    }

    /// The next block; `None` at the end of a pass.
    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        self.at = ((u64::from(self.at) + u64::from(self.step)) % u64::from(self.blocks)) as u32;
        Some(self.at)
    }
}

/// The greatest one in common.
fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

impl Tracker {
    /// Audits for as long as the budget lasts and nothing else is to be done.
    pub(super) fn audit_contents(&mut self) -> Result<(), Lost> {
        self.contents.accrue();
        while self.contents.credit > 0.0 && self.may_audit_contents() {
            let before = cpu_time();
            let any = self.audit_block()?;
            let spent = cpu_time().saturating_sub(before);
            self.contents.credit -= spent.as_secs_f64();
            self.vm.audit.cpu_microseconds.add(spent.as_micros() as u64);
            if !any {
                break;
            }
        }
        Ok(())
    }

    fn may_audit_contents(&self) -> bool {
        let idle = !self.queue.has_ready() && self.jobs.is_empty();
        idle && self.unseen.is_empty() && !self.explained() && self.last_tick.elapsed() < self.options.tick
    }

    /// Looks at the next block that has a known page. Returns whether there was one.
    fn audit_block(&mut self) -> Result<bool, Lost> {
        let pages = self.vm.map().pages();
        for _ in 0..EMPTY {
            let Some(block) = self.next_block(pages) else { return Ok(false) };
            let mut any = false;
            let mut page = block.start;
            while page < block.end {
                let region = self.region_of(page);
                let part = page..block.end.min(self.regions[region].range().end);
                page = part.end;
                any |= self.audit_part(region, part)?;
            }
            if any {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn next_block(&mut self, pages: u32) -> Option<Range<u32>> {
        let blocks = pages.div_ceil(BLOCK);
        if self.contents.order.blocks != blocks {
            self.contents.order = Order::new(blocks);
        }
        let Some(block) = self.contents.order.next() else {
            self.contents.order = Order::new(blocks);
            self.vm.audit.passes.add(u64::from(blocks > 0));
            return None;
        };
        Some(block * BLOCK..pages.min((block + 1) * BLOCK))
    }

    fn audit_part(&mut self, region: usize, pages: Range<u32>) -> Result<bool, Lost> {
        if !self.regions[region].armed() {
            return Ok(false);
        }
        let known = self.known(pages, &[PageState::Current, PageState::Zero]);
        if known.is_empty() {
            return Ok(false);
        }
        let found = self.check(region, &known, digest_piece)?;
        self.vm.audit.checked.add(found.checked);
        self.vm.audit.passed_over.add(found.passed_over);
        self.vm.audit.mismatch.add(found.wrong.len() as u64);
        Ok(true)
    }
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_has_every_block_once_and_the_next_one_another_order() {
        for blocks in [1, 2, 3, 30, 1024, 1025, 4096] {
            let pass = || {
                let mut order = Order::new(blocks);
                std::iter::from_fn(move || order.next()).collect::<Vec<_>>()
            };
            let mut once = pass();
            assert!(blocks < 1000 || once != pass(), "the same order twice");
            once.sort_unstable();
            assert_eq!(once, (0..blocks).collect::<Vec<_>>());
        }
        assert_eq!(Order::new(0).next(), None);
    }

    #[test]
    fn no_more_is_saved_up_than_a_second_is_worth() {
        let now = Instant::now();
        let mut audit = ContentAudit::new(now.checked_sub(Duration::from_secs(100)).unwrap_or(now));
        audit.set_share(0.005);
        audit.accrue();
        assert!(audit.credit <= 0.005, "{audit:?}");
        audit.set_share(0.0);
        audit.accrue();
        assert!(audit.credit <= 0.0, "{audit:?}");
    }
}
