//! Live migration with real guests: `memdex migrate` moves a running VM, and the guest's own check of its memory never fails.

mod hosts;
mod there_and_back;
