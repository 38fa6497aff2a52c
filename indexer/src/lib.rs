//! memdexd as a library: everything the daemon does, in the order of its pipeline.
//!
//! ```text
//! vm ──> watch ──> memory ──> fingerprint ──> map ──> api
//! who     what      read       BLAKE3 of       page     HTTP
//! runs    was       the        many pages      states,
//! here    written   bytes      at once         content index
//! ```
//!
//! [`host`] holds it together: the VMs there are, a tracker for each, and what they share.
pub mod api;
pub mod compare;
pub mod config;
pub mod fingerprint;
pub mod heap;
pub mod host;
pub mod listen;
pub mod map;
pub mod memory;
pub mod metrics;
pub mod migrate;
pub mod peer;
pub mod picture;
pub mod program;
pub mod units;
pub mod vm;
pub mod watch;
