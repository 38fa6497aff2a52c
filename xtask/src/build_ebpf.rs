//! `cargo xtask build-ebpf`: the eBPF object on its own, with the compiler's warnings.

use std::fs;

use memdex_ebpf_build::{LOG_NAME, build};

use crate::setup::{self, Scope};
use crate::workspace::{Failure, Outcome, root, target};

/// Build the eBPF programs alone, and show what the compiler says about them.
///
/// `cargo build` does this on its own and embeds the object in memdexd. The object printed here can be built on one
/// machine and used on another: MEMDEX_EBPF_OBJECT=FILE cargo build.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn main(_: &Arguments) -> Outcome {
    setup::ensure(Scope::Build)?;
    let out = target().join("ebpf");
    let built = build(&root().join("indexer-ebpf"), &out);
    if let Ok(log) = fs::read_to_string(out.join(LOG_NAME)) {
        eprint!("{log}");
    }
    let object = built.map_err(|error| Failure::new(error.to_string()))?;
    println!("{}", object.display());
    Ok(())
}
