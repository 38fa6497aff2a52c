//! What the daemon counts about itself, and what `/metrics` says about each figure.
//!
//! Owns the list of figures: names, meanings, and the atomics behind them. Whoever does the work counts it;
//! [`crate::api`] renders. Never does anything that could fail or wait.
//!
//! Each figure is written down once, in the tables below: from there come the counters and the `# HELP` text. Names end
//! as Prometheus wants them: `_total` for what only grows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A figure that some threads write and others read now and then.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes away `n`, which must have been added before.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
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

/// How a figure is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// What there is to know about one figure of a set.
#[derive(Debug)]
pub struct Description<T> {
    /// Its name in `/metrics`.
    pub name: &'static str,
    /// How it is shown.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
    /// Its value in a set.
    pub value: fn(&T) -> u64,
}

/// Declares a set of figures: the counters, and what `/metrics` says about each.
macro_rules! figures {
    (
        $(#[$doc:meta])* $set:ident, $prefix:literal;
        $( $(#[doc = $help:literal])+ $kind:ident $field:ident = $name:literal; )*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $set { $( $(#[doc = $help])+ pub $field: Counter, )* }

        impl $set {
            /// Every figure of the set.
            #[must_use]
            pub fn descriptions() -> &'static [Description<Self>] {
                &[ $( Description {
                    name: concat!($prefix, $name),
                    kind: Kind::$kind,
                    help: concat!($($help),+),
                    value: |set| set.$field.get(),
                }, )* ]
            }
        }
    };
}

figures! {
    /// What the tracker of one VM has done and seen, since tracking began.
    VmCounters, "memdex_vm_";

    /// Pages read and hashed (or found zero).
    Counter pages_read = "pages_read_total";
    /// Pages known from an earlier daemon that were found to be still the same, so that they were not hashed again.
    Counter pages_picked_up = "pages_picked_up_total";
    /// Runs of pages write-protected.
    Counter arm_calls = "arm_calls_total";
    /// Pages write-protected.
    Counter pages_armed = "pages_armed_total";
    /// Read-only scans of the page table.
    Counter scan_calls = "scan_calls_total";
    /// Pages those scans walked.
    Counter pages_scanned = "pages_scanned_total";
    /// Pages that went from known to stale.
    Counter pages_gone_stale = "pages_gone_stale_total";
    /// Pages that eBPF marked as about to be written.
    Counter marks_written = "marks_written_total";
    /// Pages that eBPF marked as being discarded.
    Counter marks_discarded = "marks_discarded_total";
    /// Times eBPF saw an event it could not tell to a page.
    Counter mark_overflows = "mark_overflows_total";
    /// Written pages that eBPF had not marked.
    Counter missed_by_ebpf = "missed_by_ebpf_total";
    /// Marked pages that no scan saw written within the second or two that follow.
    Counter missed_by_scan = "missed_by_scan_total";
    /// Pages whose bytes differed from a `current` fingerprint, whoever found it. Must stay 0.
    Counter mismatches = "mismatches_total";
    /// Pages that direct I/O changed after they had been read, found when they were read once more.
    Counter direct_io_late = "direct_io_late_total";
    /// Audits of the whole VM.
    Counter audits = "audits_total";
    /// Times a region was found mapped anew.
    Counter regions_remapped = "regions_remapped_total";
    /// Armed pages that were written: each write took a fault, which the guest paid for.
    Counter guest_faults = "guest_faults_total";
    /// Pages left writable for a while because arming them again was beyond the guest's budget.
    Counter arming_held = "arming_held_total";
    /// Times everything was armed at once, where soft-dirty bits are the witness.
    Counter whole_armed = "whole_armed_total";
    /// What that has taken, in microseconds; the address space of the VMM was locked for a part of it.
    Counter whole_armed_microseconds = "whole_armed_microseconds_total";
    /// Times that anybody else cleared soft-dirty bits on this host, of whatever process.
    Counter cleared_by_others = "cleared_by_others_total";
    /// Pages that are hot right now.
    Gauge hot_pages = "hot_pages";
}

figures! {
    /// What the content audit of one VM has done: known pages read and hashed again within a budget, in a random order.
    AuditCounters, "memdex_audit_";

    /// Known pages that the background audit read again and compared.
    Counter checked = "checked_total";
    /// Of those, how many did not have the content the map showed although no witness saw a write. Must stay 0.
    Counter mismatch = "mismatch_total";
    /// Pages it did not judge because they were written or thrown away meanwhile, or could not be read.
    Counter passed_over = "passed_over_total";
    /// Times it has come to the end of all pages of the VM.
    Counter passes = "passes_total";
    /// Processor time it has taken, in microseconds.
    Counter cpu_microseconds = "cpu_microseconds_total";
}

figures! {
    /// What migrations have done, both ways, since the daemon started; each is counted when it has ended.
    MigrationCounters, "memdex_migration_";

    /// Migrations after which the guest runs at the destination.
    Counter completed = "completed_total";
    /// Migrations that were called off.
    Counter aborted = "aborted_total";
    /// Migrations in which something went wrong.
    Counter failed = "failed_total";
    /// Bytes on the wire, both ways.
    Counter wire_bytes = "wire_bytes_total";
    /// Pages whose content was sent.
    Counter pages_sent = "pages_sent_total";
    /// Pages taken from what the destination held already.
    Counter pages_matched = "pages_matched_total";
    /// Microseconds for which guests stood still for a switch-over.
    Counter blackout_microseconds = "blackout_microseconds_total";
}

figures! {
    /// What the HTTP interface has done.
    HttpCounters, "memdex_http_";

    /// Connections accepted.
    Counter connections = "connections_total";
    /// Connections open now.
    Gauge open_connections = "open_connections";
    /// Times a listener waited because the most connections it may have were open.
    Counter full = "connection_limit_reached_total";
    /// Connections that failed outside a request: handshakes, malformed HTTP, time-outs, clients that went away.
    Counter broken_connections = "broken_connections_total";
    /// Requests refused for want of the right token.
    Counter unauthorized = "unauthorized_total";
    /// Panics in request handlers. Must stay 0.
    Counter panics = "panics_total";
    /// Event streams open now.
    Gauge event_streams = "event_streams";
    /// Fingerprints that others have looked up here.
    Counter looked_up = "looked_up_fingerprints_total";
    /// Of those, how many were held.
    Counter found = "found_fingerprints_total";
    /// Contents of pages sent to others.
    Counter sent_contents = "sent_contents_total";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once_and_says_its_kind() {
        let mut seen = std::collections::BTreeSet::new();
        let mut check = |name: &'static str, kind| {
            assert!(seen.insert(name), "{name} twice");
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        };
        VmCounters::descriptions().iter().for_each(|d| check(d.name, d.kind));
        AuditCounters::descriptions().iter().for_each(|d| check(d.name, d.kind));
        HttpCounters::descriptions().iter().for_each(|d| check(d.name, d.kind));
        MigrationCounters::descriptions().iter().for_each(|d| check(d.name, d.kind));
    }
}
