//! What the daemon has to know of the whole host when it arms a process by clearing its soft-dirty bits; see `indexer_common::gate`.
//!
//! A page that is being migrated has no entry that could be protected, and when it is back its entry is as writable as it was. So calls of
//! `migrate_pages` are counted in and out, each by its thread: one that began before the programs were attached is never counted out.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_map, kprobe, tracepoint},
    programs::{ProbeContext, TracePointContext},
};
use indexer_common::gate::{CLEARED_BY_OTHERS, COUNTERS, MIGRATIONS_ENDED, MIGRATIONS_STARTED};

use crate::{count::increment, offsets::offset, vm::process};

/// The counters.
#[btf_map]
static GATE: Array<u64, COUNTERS> = Array::new();

/// The threads that are in `migrate_pages`.
#[btf_map]
static MIGRATING: HashMap<u64, u32, 4096> = HashMap::new();

#[inline(always)]
fn count(counter: u32) {
    if let Some(counter) = GATE.get_ptr_mut(counter) {
        // SAFETY: it points into the value of a map.
        unsafe { increment(counter) };
    }
}

/// Pages are going to be migrated, of whatever process. Without room for the thread it is never counted out: that stops the arming, and loses nothing.
#[tracepoint]
pub fn migration_starts(_: TracePointContext) -> u32 {
    let _ = MIGRATING.insert(&bpf_get_current_pid_tgid(), &1, 0);
    count(MIGRATIONS_STARTED);
    0
}

/// They have been.
#[tracepoint]
pub fn migration_ends(_: TracePointContext) -> u32 {
    if MIGRATING.remove(&bpf_get_current_pid_tgid()).is_ok() {
        count(MIGRATIONS_ENDED);
    }
    0
}

/// `clear_refs_write`: somebody clears bits of some process.
#[kprobe]
pub fn clear_refs_write(_: ProbeContext) -> u32 {
    if process() != offset!(mapping.daemon) as u32 {
        count(CLEARED_BY_OTHERS);
    }
    0
}
