//! Black-box tests of memdex with real guests, and what they stand on: guest images and the harness that runs them.
//!
//! The harness knows memdex only by its contract (commands, HTTP, JSON) and judges it by bytes it reads itself: no
//! code of memdex is linked here. Its functions panic where a test could only fail: a broken harness is a failed test.
//!
//! - [`Scratch`]: one test's files and processes; checks at the end that nothing is left over.
//! - [`Daemon`]: a real `memdexd` and the `memdex` command that talks to it.
//! - [`Tiny`]: a KVM guest that writes the pages it is told to. [`Qemu`]: real QEMU guests.
//! - [`SlowDisk`]: a file whose reads are answered when the test says so.
//! - [`relay`]: a link between two hosts that counts, and breaks when it is told to.
//! - [`kernel_matrix`]: all of this on other kernels than this machine's.
//! - [`oracle`]: reads a guest's RAM behind memdex's back and compares every page with the map.

pub mod address_space;
pub mod cleanup;
pub mod contract;
pub mod daemon;
pub mod http;
pub mod image;
pub mod kernel_matrix;
pub mod oracle;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod relay;
pub mod slow_disk;
pub mod tiny;
pub mod wait;

pub use cleanup::Scratch;
pub use daemon::Daemon;
pub use oracle::Report;
pub use qemu::Qemu;
pub use slow_disk::SlowDisk;
pub use tiny::Tiny;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
