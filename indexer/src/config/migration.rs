//! Settings of migrations: the table `[migration]`.

use serde::Deserialize;

use super::{ConfigError, value};

/// Outgoing migrations at once if nothing else is said.
const DEFAULT_AT_ONCE: usize = 2;
/// MiB of content kept of VMs that moved away if nothing else is said.
const DEFAULT_KEEP_MIB: u64 = 4096;
/// Bytes a second below which nothing would ever arrive.
const LEAST_BANDWIDTH: u64 = 100_000;

/// How VMs are moved, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Outgoing migrations at once.
    pub at_once: usize,
    /// Most bytes a second that all outgoing migrations send together.
    pub max_bandwidth: Option<u64>,
    /// Most bytes of content kept of VMs that moved away.
    pub keep_bytes: u64,
}

/// The table as it is written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    at_once: Option<usize>,
    max_bandwidth: Option<u64>,
    keep_mib: Option<u64>,
}

impl Settings {
    pub(super) fn checked(self) -> Result<Migration, ConfigError> {
        let at_once = self.at_once.unwrap_or(DEFAULT_AT_ONCE);
        if !(1..=64).contains(&at_once) {
            return Err(value("migration.at_once", format!("{at_once} is not between 1 and 64")));
        }
        if self.max_bandwidth.is_some_and(|cap| cap < LEAST_BANDWIDTH) {
            let why = format!("less than {LEAST_BANDWIDTH} bytes a second: nothing would ever arrive");
            return Err(value("migration.max_bandwidth", why));
        }
        let keep_bytes = self.keep_mib.unwrap_or(DEFAULT_KEEP_MIB).saturating_mul(1 << 20);
        Ok(Migration { at_once, max_bandwidth: self.max_bandwidth, keep_bytes })
    }
}
