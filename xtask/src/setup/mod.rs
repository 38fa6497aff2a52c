//! `cargo xtask setup`: brings a machine that has Rust to where everything builds and every test runs.
//!
//! Looks first and quickly ([`needs`]), then installs only what is missing: Debian packages ([`debian`]), bpf-linker
//! ([`linker`]), the kernel's file systems ([`mounts`]), guest images. Safe to repeat, and to run twice at once. On a
//! system that is not Debian, or without root, it names what is missing and stops.

mod debian;
mod linker;
mod mounts;
mod needs;

use std::fs::{self, File};
use std::time::Instant;

use memdex_tests::image;
use rustix::fs::{FlockOperation, flock};

use crate::workspace::{Failure, Outcome, target};

/// Install what is missing for building and testing memdex.
///
/// Debian packages (through apt, as root), the BPF toolchain with bpf-linker, tracefs and bpffs, and the images that
/// guests of the tests boot from. Does nothing when nothing is missing, so it is safe to repeat. On other
/// distributions it says what is missing and stops.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only what building needs; no QEMU, no guest images
    #[arg(long)]
    build_only: bool,
    /// Say what is missing, install nothing; exit 1 if something is
    #[arg(long)]
    check: bool,
}

/// What a task needs on the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Compiling everything, the eBPF programs included.
    Build,
    /// Also starting guests.
    Guests,
    /// Compiling, and counting what is executed.
    Counting,
}

pub(crate) fn main(arguments: &Arguments) -> Outcome {
    let scope = if arguments.build_only { Scope::Build } else { Scope::Guests };
    let begin = Instant::now();
    if arguments.check {
        let missing = needs::missing(scope);
        return if missing.is_empty() {
            eprintln!("setup: nothing is missing");
            Ok(())
        } else {
            Err(Failure::new(needs::list("these are missing:", &missing)))
        };
    }
    ensure(scope)?;
    eprintln!("setup: everything is there ({:.1} s)", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Installs what the scope needs. Silent and quick when it is all there.
pub(crate) fn ensure(scope: Scope) -> Outcome {
    mounts::ensure();
    if needs::missing(scope).is_empty() && (scope != Scope::Guests || image::all_built()) {
        return Ok(());
    }

    let _lock = lock()?;
    // another set-up may have installed it all while this one waited
    let missing = needs::missing(scope);
    if !missing.is_empty() {
        debian::install(&missing)?;
    }
    linker::ensure()?;
    let left = needs::missing(scope);
    if !left.is_empty() {
        return Err(Failure::new(needs::list("still missing after installing:", &left)));
    }
    if scope == Scope::Guests {
        image::build_all().map_err(|error| Failure::new(error.to_string()))?;
    }
    Ok(())
}

/// One set-up at a time; released when the file is closed.
fn lock() -> Result<File, Failure> {
    let path = target().join("setup.lock");
    let failed = |error: std::io::Error| Failure::new(format!("{} can't be locked: {error}", path.display()));
    fs::create_dir_all(target()).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("setup: another set-up is running here, waiting for it");
        flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
    }
    Ok(file)
}
