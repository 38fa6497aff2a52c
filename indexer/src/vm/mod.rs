//! Who runs here.
pub mod descriptor;
