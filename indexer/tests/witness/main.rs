//! Attaching to real processes and finding their writes, on the real kernel. Needs root and Linux 6.7.
#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]
#![expect(clippy::single_range_in_vec_init, reason = "lists of runs, some with one")]

mod attach;
mod changes;
mod conditions;
mod qemu;
mod ram;
mod tracking;
mod victim;
