//! The QEMUs that guests are migrated with: this machine's own and, if that is an old one, a newer one beside it that is
//! unpacked and not installed.
//!
//! They differ in what memdex relies on: since 8.1 `x-ignore-shared` leaves out only RAM in a named file, before that
//! any shared RAM.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt;
use super::error::ImageError;
use super::run::run;
use super::store::{self, Recipe};

/// The program's name, also for the system's own.
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data"];
/// From here on a QEMU is a new one.
const NEW: QemuVersion = QemuVersion { major: 8, minor: 1, micro: 0 };
/// Firmware of other packages that QEMU's own do not bring, where Debian has it.
const FIRMWARE: [&str; 2] = ["/usr/lib/ipxe/qemu", "/usr/share/seabios"];

/// As `--version` says it; the newer is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QemuVersion {
    /// 7 in 7.2.22
    pub major: u32,
    /// 2 in 7.2.22
    pub minor: u32,
    /// 22 in 7.2.22
    pub micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, micro } = self;
        write!(f, "{major}.{minor}.{micro}")
    }
}

/// A QEMU that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuProgram {
    /// Which one it is.
    pub version: QemuVersion,
    /// The program, as a path or as a name to be found.
    pub program: PathBuf,
    /// Arguments it always needs: where its firmware is.
    pub arguments: Vec<OsString>,
}

fn recipe() -> Recipe {
    Recipe {
        name: "qemu",
        takes: "a download of 13 MB",
        parts: PACKAGES.map(str::to_owned).into_iter().chain(["1".to_owned()]).collect(),
    }
}

/// Every QEMU there is to test with, the system's own first. If that is older than 8.1, a newer one from Debian's
/// backports follows; it is fetched first if it is not there.
///
/// # Errors
/// No QEMU is installed, or apt can't deliver the newer one; the error says which.
pub fn qemu_versions() -> Result<Vec<QemuProgram>, ImageError> {
    let own = QemuProgram {
        version: version_of(Path::new(PROGRAM))?,
        program: PROGRAM.into(),
        arguments: Vec::new(),
    };
    if own.version >= NEW {
        return Ok(vec![own]);
    }
    let folder = store::ensure(&recipe(), |folder| {
        let suite = apt::Suite::beside("backports", folder)?;
        PACKAGES.iter().try_for_each(|package| suite.unpack(package, folder))?;
        suite.close()?;
        // It is linked with the libraries of this machine; better found out now than in a test.
        version_of(&program_in(folder)).map(drop)
    })?;
    Ok(vec![own, unpacked(&folder)?])
}

/// True if [`qemu_versions`] would fetch nothing.
pub(super) fn all_there() -> bool {
    store::is_built(&recipe()) || version_of(Path::new(PROGRAM)).is_ok_and(|version| version >= NEW)
}

fn unpacked(folder: &Path) -> Result<QemuProgram, ImageError> {
    let program = program_in(folder);
    let own = folder.join("usr/share/qemu");
    let folders = [own.as_path()].into_iter().chain(FIRMWARE.map(Path::new));
    let arguments = folders.flat_map(|folder| [OsString::from("-L"), folder.into()]).collect();
    Ok(QemuProgram { version: version_of(&program)?, program, arguments })
}

fn program_in(folder: &Path) -> PathBuf {
    folder.join("usr/bin").join(PROGRAM)
}

fn version_of(program: &Path) -> Result<QemuVersion, ImageError> {
    let what = format!("asking {} for its version", program.display());
    let text = run(Command::new(program).arg("--version"), &what)?;
    parse(&text).ok_or_else(|| ImageError::Failed { what, reason: format!("it says {text:?}") })
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`
fn parse(text: &str) -> Option<QemuVersion> {
    let (_, rest) = text.split_once("version ")?;
    let number = rest.split(|letter: char| letter != '.' && !letter.is_ascii_digit()).next()?;
    let mut parts = number.split('.').map(str::parse);
    let mut next = || parts.next()?.ok();
    Some(QemuVersion { major: next()?, minor: next()?, micro: next().unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        let read = |text: &str| parse(&format!("QEMU emulator version {text}\nCopyright"));
        let old = read("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)").unwrap();
        let new = read("10.0.2 (Debian 1:10.0.2+ds-2)").unwrap();
        assert_eq!(old.to_string(), "7.2.22");
        assert!(old < NEW && NEW < new);
        assert_eq!(read("9.1-rc2").unwrap(), QemuVersion { major: 9, minor: 1, micro: 0 });
        assert_eq!(parse("no such thing"), None);
    }
}
