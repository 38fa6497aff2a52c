//! What crosses the network between memdex daemons, the `memdex` command and other tools: version 1.
//!
//! This crate owns the *shapes*: JSON documents ([`vm`], [`page`], [`content`], [`diff`], [`job`], [`migration`], [`event`], [`problem`]) and the
//! binary media types for bulk ([`bulk`], [`picture`]), and the frames of a migration ([`transfer`]). It never does I/O and holds no state, so that a migration tool can depend on
//! it without pulling in an HTTP stack.
//!
//! JSON field names and meanings are stable within `/v1`; readers must ignore fields they do not know.
#![forbid(unsafe_code)]

pub mod bulk;
pub mod content;
pub mod diff;
pub mod event;
mod fingerprint;
pub mod job;
pub mod migration;
pub mod page;
pub mod picture;
pub mod problem;
pub mod transfer;
pub mod vm;

pub use fingerprint::{Fingerprint, ParseFingerprintError};

/// Bytes in a page. Guests are indexed at this granularity whatever the size of the host's mapping.
pub const PAGE_SIZE: usize = 4096;
