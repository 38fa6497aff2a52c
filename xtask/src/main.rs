//! `cargo xtask`: everything that is done to the project rather than by it. One file per task.
//!
//! Each task runs set-up first, so that each works from a fresh clone on a fresh machine.

#![forbid(unsafe_code)]

mod bench;
mod build_ebpf;
mod demo;
mod dist;
mod instructions;
mod setup;
mod soak;
mod test;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Work on memdex: set the machine up, build, test, measure.
///
/// Every task first looks at what is missing on this machine and installs it (on Debian, as root), or says what to
/// install. When nothing is missing that takes a fraction of a second.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
#[command(after_help = "\
First steps:
  cargo xtask setup     once, as root; or leave it to the next command
  cargo xtask demo      watch what memdex does, on two hosts with real guests, one of which moves
  cargo xtask test      build everything and run every test
  cargo xtask vm-test   the same promises on other kernels than this machine's
  cargo build           the daemon (memdexd) and the command (memdex) in target/debug")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Arguments),
    BuildEbpf(build_ebpf::Arguments),
    Demo(demo::Arguments),
    Test(test::Arguments),
    VmTest(vm_test::Arguments),
    Bench(bench::Arguments),
    Instructions(instructions::Arguments),
    Soak(soak::Arguments),
    Dist(dist::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup(arguments) => setup::main(&arguments),
        Task::BuildEbpf(arguments) => build_ebpf::main(&arguments),
        Task::Demo(arguments) => demo::main(&arguments),
        Task::Test(arguments) => test::main(&arguments),
        Task::VmTest(arguments) => vm_test::main(&arguments),
        Task::Bench(arguments) => bench::main(&arguments),
        Task::Instructions(arguments) => instructions::main(&arguments),
        Task::Soak(arguments) => soak::main(&arguments),
        Task::Dist(arguments) => dist::main(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn arguments_are_consistent() {
        super::Arguments::command().debug_assert();
    }

    #[test]
    fn bench_and_test_hand_arguments_on() {
        super::Arguments::try_parse_from(["xtask", "bench", "--json", "figures.json"]).unwrap();
        super::Arguments::try_parse_from(["xtask", "test", "--", "-p", "memdex-tests"]).unwrap();
    }

    #[test]
    fn vm_test_knows_its_kernels() {
        super::Arguments::try_parse_from(["xtask", "vm-test"]).unwrap();
        super::Arguments::try_parse_from(["xtask", "vm-test", "6.1", "newest", "--limit", "60"]).unwrap();
        assert!(super::Arguments::try_parse_from(["xtask", "vm-test", "2.6"]).is_err());
        assert!(super::Arguments::try_parse_from(["xtask", "vm-test", "--limit", "soon"]).is_err());
    }
}
