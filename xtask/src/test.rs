//! `cargo xtask test`: builds everything, then runs every test.

use std::process::Command;

use crate::setup::{self, Scope};
use crate::workspace::{Failure, Outcome, cargo, find_program, run, target};

/// Set the machine up, build everything, run every test.
///
/// Unit tests, documentation tests, and the black-box tests that start real guests (few at a time). Uses cargo-nextest
/// if it is installed, else cargo's own runner. The runner's summary is the last thing printed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                          everything
  cargo xtask test -- -p memdex-tests                           the black-box tests only
  cargo xtask test -- -p memdex-tests -E 'binary(footprint)'    those of one file
  cargo xtask test -- hot_pages                                 tests with `hot_pages` in their name")]
pub(crate) struct Arguments {
    /// Handed to the test runner; documentation tests are left out then.
    #[arg(last = true, value_name = "ARGUMENTS")]
    runner: Vec<String>,
}

pub(crate) fn main(arguments: &Arguments) -> Outcome {
    let nextest = find_program("cargo-nextest").is_some();
    if !nextest && arguments.runner.iter().any(|argument| is_filter_expression(argument)) {
        return Err(Failure::new(
            "filter expressions (-E) are cargo-nextest's, which is not installed: `cargo install --locked cargo-nextest`, or name tests without -E",
        ));
    }
    setup::ensure(Scope::Guests)?;

    // The black-box tests start the real programs, which cargo would not build for a test of another package. Building
    // them with the tests in one go keeps cargo from compiling dependencies twice with different features.
    eprintln!("test: building");
    run(cargo().args(["build", "--workspace", "--bins", "--tests", "--locked"]))?;

    if arguments.runner.is_empty() {
        eprintln!("test: documentation tests");
        run(with_programs(cargo().args(["test", "--workspace", "--doc", "--locked", "--quiet"])))?;
    }

    let mut command = cargo();
    if nextest {
        command.args(["nextest", "run", "--locked", "--no-fail-fast"]);
    } else {
        // Guests of tests that run side by side would take each other's cores.
        command.args(["test", "--locked", "--no-fail-fast", "--bins", "--lib", "--tests"]);
    }
    if !arguments.runner.iter().any(|argument| argument == "-p" || argument.starts_with("--package")) {
        command.arg("--workspace");
    }
    command.args(&arguments.runner);
    if !nextest {
        command.env("RUST_TEST_THREADS", "1");
    }
    run(with_programs(&mut command))
}

fn is_filter_expression(argument: &str) -> bool {
    argument.starts_with("-E") || argument.starts_with("--filter-expr") || argument.starts_with("--filterset")
}

fn with_programs(command: &mut Command) -> &mut Command {
    command.env("MEMDEX_BIN_DIR", target().join("debug"))
}
