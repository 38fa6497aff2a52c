//! `/v1/migrations`: moving a VM to another host, as a resource.
//!
//! A migration is started at the host that runs the VM and known there and at the destination by the same id. It is kept for a while
//! after its end. Whoever started it may go away: it goes on.

use serde::{Deserialize, Serialize};

use crate::{diff::DiffCounts, vm::Tracking};

/// Where a migration is. One order for code, log, metrics and progress; the last three are its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for its turn: only so many run at once.
    Queued,
    /// Both hosts look whether it can work. Nothing has been changed.
    Checking,
    /// The destination makes ready, and the two hosts are being connected.
    Connecting,
    /// Rounds: memory is copied while the guest runs.
    Copying,
    /// The guest is stopped and its I/O drained. The blackout begins.
    Stopping,
    /// What was written since the last look is read.
    Syncing,
    /// The last pages are sent.
    Finishing,
    /// Both hosts compare the digest of all pages.
    Comparing,
    /// QEMU's device state moves.
    DeviceState,
    /// The right to run passes to the destination. From here on only the destination can say who runs.
    HandingOver,
    /// The guest runs at the destination.
    Completed,
    /// It was called off; the guest runs at the source.
    Aborted,
    /// It did not work; the guest runs at the source, or what happened to it is in the reason.
    Failed,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::Queued,
        Self::Checking,
        Self::Connecting,
        Self::Copying,
        Self::Stopping,
        Self::Syncing,
        Self::Finishing,
        Self::Comparing,
        Self::DeviceState,
        Self::HandingOver,
        Self::Completed,
        Self::Aborted,
        Self::Failed,
    ];

    /// Its name in JSON, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Checking => "checking",
            Self::Connecting => "connecting",
            Self::Copying => "copying",
            Self::Stopping => "stopping",
            Self::Syncing => "syncing",
            Self::Finishing => "finishing",
            Self::Comparing => "comparing",
            Self::DeviceState => "device_state",
            Self::HandingOver => "handing_over",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing follows.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Aborted | Self::Failed)
    }

    /// Whether the guest stands still in this phase.
    #[must_use]
    pub const fn is_blackout(self) -> bool {
        matches!(
            self,
            Self::Stopping
                | Self::Syncing
                | Self::Finishing
                | Self::Comparing
                | Self::DeviceState
                | Self::HandingOver
        )
    }
}

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The guest runs at the destination.
    Completed,
    /// Somebody called it off, or it would not converge; the guest runs at the source.
    Aborted,
    /// Something went wrong.
    Failed,
}

/// Which end of a migration this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The VM leaves this host.
    Outgoing,
    /// The VM comes to this host.
    Incoming,
}

/// What to do if the guest writes faster than memory can be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnNoConverge {
    /// Call it off and say why, with figures.
    #[default]
    Abort,
    /// Slow the guest down, more and more, until it fits. The throttle is always taken back.
    Throttle,
    /// Stop the guest and send the rest, however long that takes.
    Stop,
}

/// How pages that have to be sent are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Whatever takes least time: the level is chosen from what the link and the processors do, and pages are sent as they are where that is faster.
    #[default]
    Auto,
    /// Always, at the level that takes least time, also where sending pages as they are would be faster: for links that are paid for or shared.
    Zstd,
    /// Never: for hosts with less processor time to spare than bandwidth.
    None,
}

/// What becomes of the VM at the source once the destination runs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum AtSource {
    /// Its VMM ends.
    #[default]
    Quit,
    /// It stays, paused. Resuming it by hand would make the guest run twice.
    Pause,
}

/// Body of `POST /v1/migrations` and `POST /v1/migrations/plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MigrationRequest {
    /// Id, name or pid of the VM on the host that is asked.
    pub vm: String,
    /// The destination: the name of a peer, or a URL as seen from the host that is asked.
    pub to: String,
    /// Id, name or pid of the VM that waits at the destination (`-incoming defer`); by default the name of `vm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_vm: Option<String>,
    /// Most bytes a second on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// How pages are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Milliseconds for which the guest may stand still at the end. Default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// What to do if the guest writes too fast.
    #[serde(default)]
    pub on_no_converge: OnNoConverge,
    /// What becomes of the VM at the source.
    #[serde(default)]
    pub at_source: AtSource,
    /// The VM's QMP socket, if the one on its command line is not to be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// The QMP socket of the waiting VM at the destination, seen from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_qmp: Option<String>,
}

impl MigrationRequest {
    /// A migration with all settings at their defaults.
    #[must_use]
    pub fn new(vm: impl Into<String>, to: impl Into<String>) -> Self {
        Self {
            vm: vm.into(),
            to: to.into(),
            dest_vm: None,
            max_bandwidth: None,
            compression: Compression::default(),
            downtime_ms: None,
            on_no_converge: OnNoConverge::default(),
            at_source: AtSource::default(),
            qmp: None,
            dest_qmp: None,
        }
    }
}

/// How much of a VM went which way: in pages, or in bytes of guest memory. `wire` and `sent` as said there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationPages {
    /// All pages of the VM.
    pub total: u64,
    /// Pages that were zeros after the last round that was told whole; nothing was sent for them.
    pub zero: u64,
    /// Pages taken from what the destination held already, all rounds together.
    pub matched: u64,
    /// Pages whose content was sent, all rounds together.
    pub sent: u64,
}

/// The same in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationBytes {
    /// Memory of the VM.
    pub total: u64,
    /// Memory that was zeros.
    pub zero: u64,
    /// Memory taken from what the destination held already.
    pub matched: u64,
    /// Memory whose content was sent, before compression.
    pub sent: u64,
    /// Every byte that crossed between the hosts for it, both ways, below TLS.
    pub wire: u64,
}

/// How it goes, as of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationProgress {
    /// Bytes of guest memory that the destination does not have yet.
    pub remaining_bytes: u64,
    /// Bytes a second on the wire, of late.
    pub rate: u64,
    /// Pages a second that the guest writes, of late.
    pub dirty_rate: u64,
    /// Milliseconds until the end, if it goes on like this; none while that cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<u64>,
    /// Share of its time for which the guest is held back, in percent.
    pub throttle_percent: u8,
    /// zstd level in use; 0 means that pages are sent as they are.
    pub compression_level: u8,
}

/// A line of a migration's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationLogLine {
    /// Milliseconds since it began.
    pub at_ms: u64,
    /// Where it was.
    pub phase: Phase,
    /// What happened.
    pub text: String,
}

/// A migration, as `GET /v1/migrations/{id}` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Migration {
    /// Names it on both hosts.
    pub id: String,
    /// Which end of it this host is.
    pub direction: Direction,
    /// Id of the VM on this host.
    pub vm: String,
    /// Name of the VM on this host.
    pub name: String,
    /// The destination.
    pub to: String,
    /// The VM that waits there, as it was asked for.
    pub dest_vm: String,
    /// Where it is.
    pub phase: Phase,
    /// How it ended; none as long as it has not.
    #[serde(default)]
    pub outcome: Option<Outcome>,
    /// Why it ended so, in words.
    #[serde(default)]
    pub reason: Option<String>,
    /// Milliseconds from the request to now, or to the end.
    pub total_ms: u64,
    /// Milliseconds for which the guest stood still for the switch-over, up to now.
    pub blackout_ms: f64,
    /// Rounds of copying, up to now.
    pub rounds: u64,
    /// Pages by what was done with them.
    pub pages: MigrationPages,
    /// The same in bytes, and those on the wire.
    pub bytes: MigrationBytes,
    /// How it goes.
    pub progress: MigrationProgress,
    /// What happened, oldest first; at most some hundred lines.
    pub log: Vec<MigrationLogLine>,
}

/// One thing that was looked at before anything moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationCheck {
    /// What was looked at: `monitor`, `state`, `memory`, `version`, `tracking`, `key`, `destination`, `layout`, `destination_monitor`.
    pub name: String,
    /// Whether it is as it has to be.
    pub ok: bool,
    /// What was found, and what to do if it is not ok.
    pub detail: String,
}

/// Answer of `POST /v1/migrations/plan`: what a migration would cost. Nothing moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationPlan {
    /// Id of the VM.
    pub vm: String,
    /// Name of the VM.
    pub name: String,
    /// The destination, as it was asked for: the name of a peer, or a URL.
    pub to: String,
    /// The VM that is to wait there.
    pub dest_vm: String,
    /// Whether every check is ok: a migration could begin now.
    pub possible: bool,
    /// What was looked at.
    pub checks: Vec<MigrationCheck>,
    /// Whether the VM's `current` pages can be relied on.
    pub tracking: Tracking,
    /// Pages by what would have to be done with them.
    pub pages: DiffCounts,
    /// The same in bytes.
    pub bytes: DiffCounts,
    /// Bytes that would cross the wire, estimated.
    pub wire_bytes: u64,
    /// Bytes a second that the estimate rests on: the cap, or what the link did just now.
    pub rate: u64,
    /// Pages a second that the guest writes.
    pub dirty_rate: u64,
    /// Milliseconds it would take, estimated.
    pub expected_ms: u64,
    /// Milliseconds for which the guest would stand still, estimated.
    pub expected_blackout_ms: u64,
}
