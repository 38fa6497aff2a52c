//! Counters that the trackers keep and `/metrics` shows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A figure that one thread writes and others read now and then.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What the tracker of one VM has done and seen, since tracking began.
#[derive(Debug, Default)]
pub struct VmCounters {
    /// Pages read and hashed (or found zero).
    pub pages_read: Counter,
    /// Runs of pages write-protected.
    pub arm_calls: Counter,
    /// Pages write-protected.
    pub pages_armed: Counter,
    /// Read-only scans of the page table.
    pub scan_calls: Counter,
    /// Pages those scans walked.
    pub pages_scanned: Counter,
    /// Pages that went from known to stale.
    pub pages_gone_stale: Counter,
    /// Pages that eBPF marked as about to be written.
    pub marks_written: Counter,
    /// Pages that eBPF marked as being discarded.
    pub marks_discarded: Counter,
    /// Times eBPF saw an event it could not tell to a page.
    pub mark_overflows: Counter,
    /// Written pages that eBPF had not marked.
    pub missed_by_ebpf: Counter,
    /// Pages whose bytes differed from a `current` fingerprint.
    pub mismatches: Counter,
    /// Audits of the whole VM.
    pub audits: Counter,
    /// Times a region was found mapped anew.
    pub regions_remapped: Counter,
    /// Pages that are hot right now.
    pub hot_pages: Counter,
}
