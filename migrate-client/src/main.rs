//! The `memdex` command: what a host knows of its VMs' memory, what another host lacks of it, and moving a VM there.
#![forbid(unsafe_code)]

mod command;
mod output;
mod progress;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
