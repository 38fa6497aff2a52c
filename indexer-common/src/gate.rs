//! Counting what goes through page tables without being any one VM's event: the array that the programs of soft-dirty tracking keep.
//!
//! One array of three counters, each an element of its own, because the daemon needs to read them one after the other.

/// Calls of `migrate_pages` begun, by whichever thread of the host. Only ever grows.
pub const MIGRATIONS_STARTED: u32 = 0;
/// Calls of `migrate_pages` ended. Only ever grows, and never past the ones begun.
pub const MIGRATIONS_ENDED: u32 = 1;
/// Writes to a `clear_refs` file by anybody but the daemon.
pub const CLEARED_BY_OTHERS: u32 = 2;
/// Counters in the array.
pub const COUNTERS: usize = 3;
