//! memdexd as a library.
pub mod map;
pub mod units;
pub mod vm;
