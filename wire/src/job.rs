//! `POST /v1/vms/{vm}/sync` and `POST /v1/vms/{vm}/verify`.

use serde::{Deserialize, Serialize};

use crate::{page::PageState, vm::PageCounts};

/// Body of `POST /v1/vms/{vm}/sync`; an empty body takes the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// Give up after this many milliseconds. Default 30,000, at most 600,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Answer of `POST /v1/vms/{vm}/sync`: every page has been current at some moment since the call, but for those that are unsettled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncReport {
    /// Id of the VM.
    pub vm: String,
    /// Generation of the map when the sync was complete.
    pub generation: u64,
    /// Pages in each state at that moment. `stale` counts pages written again since they were read, and unsettled ones.
    pub pages: PageCounts,
    /// Unsettled pages that were read again for this, which settles them. That helps only while the guest stands still, its I/O drained, so
    /// only a migration does it; other syncs leave such pages as they are.
    #[serde(default)]
    pub unsettled_read: u64,
    /// Milliseconds for which a write can have gone unnoticed at that moment.
    #[serde(default)]
    pub staleness_ms: u64,
    /// Milliseconds since the oldest write mark that no scan had answered yet was seen, at most; 0 if there was none.
    #[serde(default)]
    pub oldest_mark_ms: u64,
    /// Milliseconds it took.
    pub elapsed_ms: u64,
}

/// Answer of `POST /v1/vms/{vm}/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyReport {
    /// Id of the VM.
    pub vm: String,
    /// Generation of the map when the last page was checked.
    pub generation: u64,
    /// Pages that were read again and had no write in between.
    pub checked: u64,
    /// Pages passed over because they were stale or were written meanwhile.
    pub skipped: u64,
    /// Checked pages whose bytes do not have the fingerprint the map shows. Must be 0.
    pub mismatches: u64,
    /// The first mismatches, at most 16.
    pub examples: Vec<Mismatch>,
    /// Milliseconds for which a write can have gone unnoticed at that moment.
    #[serde(default)]
    pub staleness_ms: u64,
    /// Milliseconds since the oldest write mark that no scan had answered yet was seen, at most; 0 if there was none.
    #[serde(default)]
    pub oldest_mark_ms: u64,
    /// Milliseconds it took.
    pub elapsed_ms: u64,
}

/// A page whose bytes are not what the map says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Mismatch {
    /// Page number.
    pub page: u64,
    /// What the map said.
    pub state: PageState,
}
