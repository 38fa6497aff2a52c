//! `cargo xtask bench`: the figures of SPECIFICATION.md, measured on this machine.

use crate::setup::{self, Scope};
use crate::workspace::{Outcome, cargo, run, target};

/// Measure the promised figures on this machine, in a release build.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench --json figures.json     also write them as JSON: [{\"name\",\"value\",\"unit\"}]
  cargo xtask bench --compare old.json      show them beside those of an earlier run, with the ratios
  cargo xtask bench -- --help               what can be measured")]
pub(crate) struct Arguments {
    /// Handed to the bench program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    program: Vec<String>,
}

pub(crate) fn main(arguments: &Arguments) -> Outcome {
    setup::ensure(Scope::Guests)?;
    eprintln!("bench: building with optimisation (some minutes the first time)");
    run(cargo().args([
        "build",
        "--release",
        "--locked",
        "-p",
        "indexer",
        "-p",
        "migrate-client",
        "-p",
        "memdex-bench",
        // The tiny VMM.
        "-p",
        "memdex-tests",
    ]))?;
    run(cargo()
        .args(["run", "--release", "--locked", "--quiet", "-p", "memdex-bench", "--"])
        .args(&arguments.program)
        .env("MEMDEX_BIN_DIR", target().join("release")))
}
