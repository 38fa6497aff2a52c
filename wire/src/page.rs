//! `GET /v1/vms/{vm}/pages`: the page map.

use serde::{Deserialize, Serialize};

use crate::Fingerprint;

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum PageState {
    /// Written since it was last read, not read yet, or unsettled: direct I/O may have changed it unseen.
    Stale = 0,
    /// Never populated: reads as zero, takes no memory on the host.
    Absent = 1,
    /// Populated and all zero.
    Zero = 2,
    /// Its content is what the fingerprint names.
    Current = 3,
}

/// One page, as a line of `memdex pages -o jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PageRecord {
    /// Page number: counts through the VM's regions in order.
    pub page: u64,
    /// Index of the region.
    pub region: u32,
    /// Byte offset in the region; for a RAM file the offset in the file.
    pub offset: u64,
    /// What is known.
    pub state: PageState,
    /// The content's name; null for `zero` and `absent`, the last known or null for `stale`.
    pub fingerprint: Option<Fingerprint>,
    /// Generation in which the content last changed.
    pub generation: u64,
}
