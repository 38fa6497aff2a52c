//! `GET /v1/events`: server-sent events. The SSE event name is the `type` field.

use serde::{Deserialize, Serialize};

use crate::{
    migration::{Direction, Phase},
    vm::{PageCounts, Tracking},
};

/// Something that happened on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Event {
    /// A VM was found.
    VmAppeared {
        /// Id of the VM.
        vm: String,
        /// Its name.
        name: String,
    },
    /// A VM has ended or is no longer indexed.
    VmGone {
        /// Id of the VM.
        vm: String,
        /// Its name.
        name: String,
        /// Why, in words.
        reason: String,
    },
    /// A VM's regions changed: page numbers are counted anew.
    LayoutChanged {
        /// Id of the VM.
        vm: String,
        /// Pages there are now.
        pages: u64,
    },
    /// Tracking of a VM became exact or advisory.
    TrackingChanged {
        /// Id of the VM.
        vm: String,
        /// What it is now.
        tracking: Tracking,
        /// Why, in words; empty for `exact`.
        reasons: Vec<String>,
    },
    /// A VM's map moved on. Sent at most once a second for each VM.
    MapChanged {
        /// Id of the VM.
        vm: String,
        /// Generation now.
        generation: u64,
        /// Pages in each state.
        pages: PageCounts,
    },
    /// A migration has begun, has reached its next phase, or has ended.
    MigrationChanged {
        /// Id of the migration.
        migration: String,
        /// Id of the VM on this host.
        vm: String,
        /// Which end of it this host is.
        direction: Direction,
        /// Where it is.
        phase: Phase,
    },
    /// A page was found to differ from its fingerprint.
    Mismatch {
        /// Id of the VM.
        vm: String,
        /// Page number.
        page: u64,
    },
    /// This reader was too slow: some events were left out. Read the resources anew.
    Lagged {
        /// Number of events left out.
        skipped: u64,
    },
}
