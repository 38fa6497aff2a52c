//! Black-box tests of memdex with real guests, and what they stand on: guest images and the harness that runs them.

pub mod image;
