//! `cargo xtask demo`: two hosts on this machine with real guests, to watch what memdex does. At the end one of them moves.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::setup::{self, Scope};
use crate::workspace::{Failure, Outcome, cargo, root, run, target};

/// Watch what memdex does: two hosts on this machine, each with real guests that keep writing.
///
/// Sets the machine up, builds everything, and plays for about a minute: VMs are indexed, written pages become stale
/// and current again, each host says what the other lacks, and all of it is checked against the RAM of the guests. At
/// the end one of the VMs moves live to the other host and back (`memdex migrate`), and says itself that its memory is
/// right. The exit code is 0 only if every check passed. Ctrl-C ends it at any moment and leaves nothing behind.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask demo                      with Debian guests
  cargo xtask demo --fast               with tiny guests that boot in seconds
  cargo xtask demo --json summary.json  also write figures and checks to a file")]
pub(crate) struct Arguments {
    /// Tiny guests instead of Debian
    #[arg(long)]
    fast: bool,
    /// Build without optimisation: sooner ready, slower figures
    #[arg(long)]
    debug: bool,
    /// Write figures and checks to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn main(arguments: &Arguments) -> Outcome {
    setup::ensure(Scope::Guests)?;
    let folder = target().join(if arguments.debug { "debug" } else { "release" });
    eprintln!("demo: building (some minutes the first time)");
    let mut build = cargo();
    build.args(["build", "--locked"]);
    if !arguments.debug {
        build.arg("--release");
    }
    run(build.args(["-p", "indexer", "-p", "migrate-client", "-p", "memdex-tests", "--bins"]))?;

    let mut demo = Command::new(folder.join("memdex-demo"));
    demo.env("MEMDEX_BIN_DIR", &folder);
    if arguments.fast {
        demo.arg("--fast");
    }
    if let Some(file) = &arguments.json {
        let here = env::current_dir().unwrap_or_else(|_| root());
        demo.arg("--json").arg(here.join(file));
    }
    // In place of this process, so that Ctrl-C and the exit code are the demo's.
    let error = demo.exec();
    Err(Failure::new(format!("the demo can't be started: {error}")))
}
