//! memdexd as a library.
pub mod fingerprint;
pub mod map;
pub mod memory;
pub mod units;
pub mod vm;
pub mod watch;
