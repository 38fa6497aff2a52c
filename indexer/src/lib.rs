//! The indexer: keeps a current fingerprint of every guest page of a host.

pub mod units;
pub mod vm;
