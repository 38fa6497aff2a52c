//! `GET /v1/vms` and `GET /v1/vms/{vm}`.

use serde::{Deserialize, Serialize};

/// What a host knows of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmInfo {
    /// Names this VM on this host for as long as its VMM process lives, also across daemon restarts.
    pub id: String,
    /// The name the VMM was given, or one made from its process (`qemu-1234`). Need not be unique.
    pub name: String,
    /// The VM's UUID, if its command line gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Process id of the VMM.
    pub pid: u32,
    /// Program that runs the VM, for example `qemu-system-x86_64`.
    pub vmm: String,
    /// What executes guest code: `kvm`, `tcg` or `unknown`.
    pub accelerator: String,
    /// Bytes of guest RAM, all regions together.
    pub memory_bytes: u64,
    /// Bytes in a page of the map.
    pub page_size: u32,
    /// Counts every change of the map; the `ETag` of the VM's resources.
    pub generation: u64,
    /// Whether `current` can be relied on.
    pub tracking: Tracking,
    /// Why `tracking` is `advisory`; empty when it is `exact`.
    #[serde(default)]
    pub advisory_reasons: Vec<String>,
    /// A file that the VMM has open for direct I/O (`O_DIRECT`), if any: then a page that was read is `stale` (unsettled) until no request
    /// from before can be under way any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_io: Option<String>,
    /// Who watches for writes, and what could not be attached and why.
    pub witnesses: Vec<Witness>,
    /// Per region: how it is watched.
    pub coverage: Vec<RegionCoverage>,
    /// Number of pages in each state.
    pub pages: PageCounts,
    /// Share of the first pass over the memory that is done: 1 when every page has been looked at once.
    pub indexed: IndexProgress,
    /// Milliseconds for which a write can have gone unnoticed at most: since the witnesses that this VM's map rests on were last
    /// asked. Where memory is only read again now and then, that is since the last complete reading began.
    #[serde(default)]
    pub staleness_ms: u64,
    /// Milliseconds since the oldest write mark that no scan has answered yet was seen, at most; 0 if there is none.
    #[serde(default)]
    pub oldest_mark_ms: u64,
    /// Milliseconds since the page table was last held against the whole map: a write that eBPF did not mark is found then.
    #[serde(default)]
    pub audit_age_ms: u64,
    /// Writes that the page tables showed and eBPF had not marked, since tracking began.
    #[serde(default)]
    pub missed_by_ebpf: u64,
    /// The other way round: pages that eBPF marked and no scan of the page tables saw written, since tracking began. Some faults end
    /// without a write.
    #[serde(default)]
    pub missed_by_scan: u64,
    /// Pages whose content was found to differ from a `current` fingerprint, since tracking began. Must stay 0.
    #[serde(default)]
    pub mismatches: u64,
    /// Known pages that the background audit has read again and compared, since tracking began.
    #[serde(default)]
    pub audit_checked: u64,
    /// What the guest has paid for being watched over the last ten seconds, in millionths of one vCPU: estimated from the faults that its writes to
    /// protected pages took, and what a fault costs on this machine.
    #[serde(default)]
    pub guest_cost_ppm: u64,
    /// What it may pay in the long run, in the same unit (`--guest-budget`). Where it is used up pages stay `stale` for longer.
    #[serde(default)]
    pub guest_budget_ppm: u64,
    /// Pages known from an earlier daemon that were found to be still the same, so that they were not read anew, since tracking began.
    #[serde(default)]
    pub picked_up: u64,
}

/// How far the first pass over a VM's memory has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IndexProgress {
    /// Pages looked at so far.
    pub done: u64,
    /// Pages there are.
    pub total: u64,
    /// Milliseconds since the pass began, or that it took if it is done.
    #[serde(default)]
    pub elapsed_ms: u64,
}

/// Whether a VM's `current` pages can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Tracking {
    /// `current` means: write-protected before it was read, and no write seen since.
    Exact,
    /// At least one way to write guest memory is not watched: `current` means "as of the last time it was read".
    /// A migration re-hashes everything at its final pause.
    Advisory,
}

/// One source of knowledge about writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Witness {
    /// `write-protect`, `soft-dirty` (where the kernel has nothing better), `rehash`, `kvm-dirty-ring` (if the VMM has it on), or the name of an eBPF hook such as `ebpf:kvm_page_fault`.
    pub name: String,
    /// Whether it is at work for this VM.
    pub status: WitnessStatus,
    /// Why it is not, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a witness is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum WitnessStatus {
    /// At work.
    Active,
    /// Could not be attached; the reason says why.
    Unavailable,
}

/// How one region of guest RAM is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegionCoverage {
    /// The region's name: its RAM file, or the kind of mapping.
    pub region: String,
    /// Page number of the region's first page.
    pub first_page: u64,
    /// Pages in the region.
    pub pages: u64,
    /// Byte offset of the region's first page: where it begins in a RAM file, else 0.
    #[serde(default)]
    pub offset: u64,
    /// `exact`, `advisory`, or `unreadable`.
    pub status: CoverageStatus,
    /// Why it is not `exact`.
    #[serde(default)]
    pub reason: Option<String>,
    /// Names of the witnesses that are not at work for it; `witnesses` says why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// How well a region is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum CoverageStatus {
    /// Every write is seen.
    Exact,
    /// Some writes may be seen late, or only by re-reading.
    Advisory,
    /// The host cannot read this memory; its pages stay `stale`.
    Unreadable,
}

/// Number of pages in each state; `absent + zero + current + stale = total`. `unsettled` counts some of the stale ones once more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PageCounts {
    /// All pages.
    pub total: u64,
    /// Never populated: read as zero.
    pub absent: u64,
    /// Populated and all zero.
    pub zero: u64,
    /// Content known by fingerprint.
    pub current: u64,
    /// Written since, not read yet, or unsettled.
    pub stale: u64,
    /// Those of the stale pages that have not been written since they were read: direct I/O that was under way before may have
    /// changed them all the same. Their last fingerprint is nearly always right; they are read once more when that is over.
    #[serde(default)]
    pub unsettled: u64,
}
