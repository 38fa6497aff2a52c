//! Witnesses: who noticed that a page was written.
pub mod ebpf;
