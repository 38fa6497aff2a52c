//! How much a peer may answer, and how long it may take: every bound of this crate, in one place.
//!
//! A peer can be broken, out of date or hostile. Whatever it sends, a call here ends, and never holds more than these
//! figures in memory.

use std::time::Duration;

use memdex_wire::bulk;

/// Largest JSON answer: some thousand VMs with full coverage lists.
pub const MAX_JSON_BYTES: usize = 16 << 20;
/// Largest answer about one migration: its log has some hundred lines.
pub const MAX_MIGRATION_BYTES: usize = 1 << 20;
/// Largest error body that is read; what is longer counts as no error body.
pub const MAX_PROBLEM_BYTES: usize = 64 << 10;
/// Longest part of a peer's sentence that is repeated in an error.
pub const MAX_DETAIL_CHARS: usize = 600;
/// Largest answer to one lookup.
pub const MAX_BITMAP_BYTES: usize = bulk::MAX_BITMAP_BYTES;
/// Most fingerprints in one request; longer lists are split.
pub const MAX_LOOKUP: usize = bulk::MAX_LOOKUP;
/// Lookups under way at once when a list is split.
pub const LOOKUPS_AT_ONCE: usize = 4;
/// Most pages in a page map: 16 TiB of guest memory. The map is streamed, never held.
pub const MAX_PAGES: u64 = 1 << 32;
/// Largest single server-sent event, and longest line of one.
pub const MAX_EVENT_BYTES: usize = 64 << 10;
/// Most bytes of a health answer that are read.
pub const MAX_HEALTH_BYTES: usize = 4 << 10;
/// Longest id or name of a VM that is asked for.
pub const MAX_KEY_BYTES: usize = 4 << 10;
/// Longest path of a Unix socket (`sun_path` less its NUL, unix(7)).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Largest token file.
pub const MAX_TOKEN_BYTES: usize = 4 << 10;
/// Largest file of certificate authorities.
pub const MAX_CA_BYTES: u64 = 1 << 20;
/// Slowest rate, in bytes a second of waiting, at which a page map may trickle in. The time a reader spends on records
/// does not count.
pub const MIN_STREAM_RATE: u64 = 64 << 10;
/// How much longer than its own time-out the answer to a sync may take.
pub const SYNC_GRACE: Duration = Duration::from_secs(10);
/// Time between two looks at a migration that is followed.
pub const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// How long one of these looks may take before another one is tried.
pub const LOOK: Duration = Duration::from_secs(4);

/// How long a peer may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// For a complete answer to a question that needs no work: VMs, health, one lookup.
    pub answer: Duration,
    /// For a complete diff or plan, and for a migration to begin: the host asks another one meanwhile.
    pub diff: Duration,
    /// For a complete verify: the host re-reads all of the VM's memory.
    pub verify: Duration,
    /// Between two pieces of a page map.
    pub piece: Duration,
    /// Between two signs of life on the event stream; hosts send a comment every 15 s.
    pub quiet: Duration,
    /// How long a migration that is followed may be out of sight.
    pub sight: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            diff: Duration::from_secs(300),
            verify: Duration::from_secs(3600),
            piece: Duration::from_secs(30),
            quiet: Duration::from_secs(60),
            sight: Duration::from_secs(10),
        }
    }
}
