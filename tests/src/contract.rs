//! The JSON that memdex promises, spelled out here once more. On purpose not memdex's own types: a renamed field must
//! fail a test, not compile into both sides.

use serde::Deserialize;

/// A VM of `memdex vms -o json`.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the contract")]
pub struct Vm {
    pub id: String,
    pub name: String,
    pub pid: u32,
    pub vmm: String,
    pub accelerator: String,
    pub memory_bytes: u64,
    pub page_size: u64,
    pub generation: u64,
    pub tracking: String,
    /// Objects; their shape is not part of the contract.
    pub witnesses: Vec<serde_json::Value>,
    pub coverage: Vec<Coverage>,
    pub pages: Counts,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub advisory_reasons: Vec<String>,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub mismatches: u64,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub missed_by_ebpf: u64,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub missed_by_scan: u64,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub audit_checked: u64,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub staleness_ms: u64,
    /// Added to the contract after version 0.1.
    #[serde(default)]
    pub direct_io: Option<String>,
    /// Added to the contract after version 0.1.
    #[serde(default)]
    pub picked_up: u64,
}

/// How a region is watched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the contract")]
pub struct Coverage {
    pub region: String,
    pub first_page: u64,
    pub pages: u64,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub offset: u64,
    pub status: String,
    pub reason: Option<String>,
    /// Added to the contract after version 0.1.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// Pages in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the contract")]
pub struct Counts {
    pub total: u64,
    pub absent: u64,
    pub zero: u64,
    pub current: u64,
    pub stale: u64,
    /// Added to the contract after version 0.1.
    #[serde(default)]
    pub unsettled: u64,
}

/// A line of `memdex pages VM -o jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the contract")]
pub struct Page {
    pub page: u64,
    pub region: u32,
    pub offset: u64,
    pub state: State,
    pub fingerprint: Option<String>,
    pub generation: u64,
}

/// State of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[expect(missing_docs, reason = "the words are those of the contract")]
#[serde(rename_all = "lowercase")]
pub enum State {
    Absent,
    Zero,
    Current,
    Stale,
}

/// Answer of `memdex diff -o json`.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the contract")]
pub struct Diff {
    pub vm: String,
    pub to: String,
    pub generation: u64,
    pub pages: DiffCounts,
    pub bytes: DiffCounts,
    pub elapsed_us: u64,
    /// Added to the contract after version 0.1.
    #[serde(default)]
    pub picture_age_ms: Option<u64>,
    /// Added to the contract by version 0.1.
    #[serde(default)]
    pub staleness_ms: Option<u64>,
    /// Added to the contract after version 0.1.
    #[serde(default)]
    pub advisory_reasons: Vec<String>,
    /// Added to the contract after version 0.1.
    #[serde(default)]
    pub coverage: Vec<Coverage>,
}

/// Pages or bytes by what would have to be done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the contract")]
pub struct DiffCounts {
    pub total: u64,
    pub zero: u64,
    pub matched: u64,
    pub missing: u64,
    pub stale: u64,
}
