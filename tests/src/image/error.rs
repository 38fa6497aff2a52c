//! Why an image could not be built.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image could not be built; each kind is one sentence with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A program that building needs is not installed.
    #[error(
        "{program} is not installed, and guest images can't be built without it: run `cargo xtask setup`"
    )]
    NoProgram {
        /// The program's name.
        program: String,
    },
    /// Only root can make a Debian system with the right owners of files.
    #[error("making the {image} needs root: run `cargo xtask setup` as root once")]
    NotRoot {
        /// What can't be made.
        image: &'static str,
    },
    /// A program ran and failed.
    #[error("{what} failed: {reason}")]
    Failed {
        /// What was being done, in words.
        what: String,
        /// The last words of the program that failed.
        reason: String,
    },
    /// apt knows no archive of Debian packages.
    #[error("apt has no package archive to build a Debian guest from: add a Debian mirror to apt's sources")]
    NoArchive,
    /// The kernel has no such module.
    #[error("kernel module {module} is not in {}: the kernel package changed, and the image recipe must follow", folder.display())]
    NoModule {
        /// The module's name.
        module: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{action} {} failed: {source}", path.display())]
    Io {
        /// What was being done, as "reading".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl ImageError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
