//! Attaching to real processes and finding their writes, on the real kernel. Needs root and Linux 6.7.
#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

mod attach;
mod qemu;
mod tracking;
mod victim;
