//! The `memdex` command: what a host knows of its VMs' memory, and what another host lacks of it.
#![forbid(unsafe_code)]

mod command;
mod output;
mod progress;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
