//! Witnesses: what was written in a VM, and making the next write visible. Never reads or hashes guest bytes.

pub mod claim;
pub mod inject;
pub mod pagemap;
pub mod process;
mod ptrace;
pub mod userfault;
