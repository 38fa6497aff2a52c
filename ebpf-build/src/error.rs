//! Why no eBPF object could be had. Each kind prints as one sentence: what, why, what to do.
//!
//! Written without a derive: this crate has no dependencies, see `Cargo.toml`.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::PREBUILT_VARIABLE;

/// Why [`build`](crate::build) returned no object.
#[derive(Debug)]
pub enum BuildError {
    /// No toolchain has a standard library for the BPF target, or the sources of one.
    NoToolchain,
    /// There is a toolchain, but no `bpf-linker`.
    NoLinker,
    /// `MEMDEX_EBPF_OBJECT` is set, but what it names can't be used.
    Prebuilt {
        /// The value of the variable.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The inner cargo failed; the compiler's words are in `details` and in the file `log`.
    Compile {
        /// File that holds the whole output.
        log: PathBuf,
        /// Standard error of the inner cargo.
        details: String,
    },
    /// The inner cargo succeeded, but what it wrote is not an eBPF object.
    Object {
        /// The file that was expected to be one.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or program could not be used.
    Io {
        /// What was being done, as "copying".
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl BuildError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// What the compiler said, for a developer of the programs; `None` where the sentence is all there is.
    #[must_use]
    pub fn details(&self) -> Option<&str> {
        match self {
            Self::Compile { details, .. } => Some(details),
            _ => None,
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToolchain => write!(
                f,
                "the BPF toolchain is missing (no Rust toolchain here has the standard library of bpfel-unknown-none \
                 or rust-src): run `cargo xtask setup`, or set {PREBUILT_VARIABLE}=FILE to an object built elsewhere"
            ),
            Self::NoLinker => write!(
                f,
                "the BPF toolchain is incomplete (bpf-linker is not in target/tools/bin, in PATH or in cargo's bin \
                 folder): run `cargo xtask setup`, or set {PREBUILT_VARIABLE}=FILE to an object built elsewhere"
            ),
            Self::Prebuilt { path, reason } => write!(
                f,
                "{PREBUILT_VARIABLE} names {}, which {reason}: name the absolute path of an object built by \
                 `cargo xtask build-ebpf`, or unset it",
                path.display()
            ),
            Self::Compile { log, .. } => write!(
                f,
                "the eBPF programs in indexer-ebpf do not compile: mend what the compiler reports (all of it is in {})",
                log.display()
            ),
            Self::Object { path, reason } => write!(
                f,
                "the build of indexer-ebpf left {}, which {reason}: remove the target folder and run \
                 `cargo xtask build-ebpf`",
                path.display()
            ),
            Self::Io { action, path, source } => {
                write!(f, "{action} {} failed while building the eBPF programs: {source}", path.display())
            }
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_toolchain_is_one_line_that_names_the_remedy() {
        for error in [BuildError::NoToolchain, BuildError::NoLinker] {
            let sentence = error.to_string();
            assert_eq!(sentence.lines().count(), 1);
            assert!(sentence.contains("cargo xtask setup"), "{sentence}");
            assert!(sentence.contains(PREBUILT_VARIABLE), "{sentence}");
        }
    }
}
