//! `cargo xtask soak`: real guests and a judge that reads behind their backs, for as long as one likes.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::setup::{self, Scope};
use crate::workspace::{Failure, Outcome, cargo, root, run, target};

/// Let real guests write for a long time, and check every page of their maps all the while.
///
/// Tiny KVM guests, Linux and firmware in QEMU write, have memory discarded and plugged in, read a disk, inflate a balloon, come and go; the
/// daemon is stopped and killed in between. An oracle that uses no code of memdex pauses each guest again and again and holds every page
/// against the guest's RAM: what the map says by itself, and what it says after a sync. Progress is on stderr. The exit code is 0 only if no
/// page was wrong. What is done is repeated by the seed; when, is not. Ctrl-C ends it at any moment and leaves nothing behind.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask soak --minutes 60
  cargo xtask soak --minutes 10 --seed 7 -o json --json soak.json")]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    minutes: f64,
    /// Where the random choices begin
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
    /// What is printed at the end: text or json
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: String,
    /// Also write the JSON to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn main(arguments: &Arguments) -> Outcome {
    setup::ensure(Scope::Guests)?;
    let folder = target().join("release");
    eprintln!("soak: building with optimisation (some minutes the first time)");
    run(cargo().args([
        "build",
        "--release",
        "--locked",
        "-p",
        "indexer",
        "-p",
        "migrate-client",
        "-p",
        "memdex-tests",
        "--bins",
    ]))?;

    let mut soak = Command::new(folder.join("memdex-soak"));
    soak.env("MEMDEX_BIN_DIR", &folder);
    soak.args(["--minutes", &arguments.minutes.to_string(), "--seed", &arguments.seed.to_string()]);
    soak.args(["-o", &arguments.output]);
    if let Some(file) = &arguments.json {
        let here = env::current_dir().unwrap_or_else(|_| root());
        soak.arg("--json").arg(here.join(file));
    }
    // In place of this process, so that Ctrl-C and the exit code are the soak's.
    let error = soak.exec();
    Err(Failure::new(format!("the soak can't be started: {error}")))
}
