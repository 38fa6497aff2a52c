//! The `memdex` command.
fn main() {}
