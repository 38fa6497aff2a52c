//! `GET /v1/vms/{vm}/diff?to=`: what another host lacks of a VM.

use serde::{Deserialize, Serialize};

use crate::vm::{RegionCoverage, Tracking};

/// The answer to "what does that host lack of this VM?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Diff {
    /// Id of the VM.
    pub vm: String,
    /// URL of the host it was compared with.
    pub to: String,
    /// Generation of the VM's map that was compared.
    pub generation: u64,
    /// Whether the VM's `current` pages can be relied on.
    pub tracking: Tracking,
    /// Why `tracking` is `advisory`; empty when it is `exact`.
    #[serde(default)]
    pub advisory_reasons: Vec<String>,
    /// Per region: how it was watched when the map was taken.
    #[serde(default)]
    pub coverage: Vec<RegionCoverage>,
    /// Milliseconds for which a write can have gone unnoticed at most when the map was taken; see `VmInfo`.
    #[serde(default)]
    pub staleness_ms: u64,
    /// Milliseconds since the oldest write mark that no scan had answered yet was seen, at most; 0 if there was none.
    #[serde(default)]
    pub oldest_mark_ms: u64,
    /// Pages of the VM whose content was found to differ from a `current` fingerprint, since tracking began. Must stay 0.
    #[serde(default)]
    pub mismatches: u64,
    /// Pages by what would have to be done with them.
    pub pages: DiffCounts,
    /// The same in bytes of guest memory.
    pub bytes: DiffCounts,
    /// Milliseconds since the other host last confirmed the picture of its contents from which this was known; `null` if it was asked.
    #[serde(default)]
    pub picture_age_ms: Option<u64>,
    /// Microseconds from question to answer, on the host that owns the VM.
    pub elapsed_us: u64,
}

/// `zero + matched + missing + stale = total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiffCounts {
    /// All pages of the VM.
    pub total: u64,
    /// Zero or absent: nothing to send.
    pub zero: u64,
    /// The other host holds this content.
    pub matched: u64,
    /// The other host lacks this content.
    pub missing: u64,
    /// Content not known right now.
    pub stale: u64,
}

impl DiffCounts {
    /// The same counts in bytes.
    #[must_use]
    pub fn in_bytes(&self) -> Self {
        let size = crate::PAGE_SIZE as u64;
        Self {
            total: self.total * size,
            zero: self.zero * size,
            matched: self.matched * size,
            missing: self.missing * size,
            stale: self.stale * size,
        }
    }
}
