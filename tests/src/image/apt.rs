//! The machine's own apt: which archive it uses, and packages fetched without installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::ImageError;
use super::run::run;

/// An archive that can make a Debian system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// Base address, as apt has it.
    pub(super) uri: String,
    /// Name of the release, as "bookworm".
    pub(super) suite: String,
}

/// The archive this machine is installed from.
pub(super) fn archive() -> Result<Archive, ImageError> {
    let listing = run(
        Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)",
            "Created-By: Packages",
        ]),
        "asking apt for its archives",
    )?;
    choose(&listing).ok_or(ImageError::NoArchive)
}

/// The first main archive of Debian that is a release of its own, not its updates or security fixes.
fn choose(listing: &str) -> Option<Archive> {
    listing.lines().find_map(|line| {
        let mut fields = line.split('|');
        let (uri, suite, component, origin) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        // The origin comes from the archive's own index, and is empty before the first `apt-get update`.
        let debian = matches!(origin, "Debian" | "");
        (debian && component == "main" && !suite.contains(['-', '/']) && !suite.is_empty())
            .then(|| Archive { uri: uri.to_owned(), suite: suite.to_owned() })
    })
}

/// The package that a metapackage stands for: its first dependency whose name begins with `prefix`.
pub(super) fn behind(metapackage: &str, prefix: &str) -> Result<String, ImageError> {
    let what = format!("looking up the package {metapackage}");
    let ask = || {
        let text = run(Command::new("apt-cache").args(["depends", metapackage]), &what)?;
        let found = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned);
        found
            .ok_or_else(|| ImageError::Failed { what: what.clone(), reason: format!("it needs no {prefix}") })
    };
    ask().or_else(|_| update().and_then(|()| ask()))
}

/// Downloads a package and unpacks it into the folder; nothing is installed.
pub(super) fn unpack(package: &str, into: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(into).map_err(ImageError::io("creating", into))?;
    // A package list older than the archive names files that are gone: fetch a new one, then try again.
    let fetch = || download(package, into, &[]);
    unpack_file(package, &fetch().or_else(|_| update().and_then(|()| fetch()))?, into)
}

/// The same for packages of this machine's archive in another of its suites, as "backports". The machine's own sources
/// and package lists stay as they are: apt is given others for the time, which are removed again.
pub(super) fn unpack_from(suffix: &str, packages: &[&str], into: &Path) -> Result<(), ImageError> {
    let Archive { uri, suite } = archive()?;
    let apart = into.join("apt");
    let lists = apart.join("lists");
    fs::create_dir_all(lists.join("partial")).map_err(ImageError::io("creating", &lists))?;
    let sources = apart.join("sources.list");
    // Who installed Debian has its keys there; without the file apt looks where it always does.
    let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let signed = if keys.is_file() { format!("[signed-by={}] ", keys.display()) } else { String::new() };
    fs::write(&sources, format!("deb {signed}{uri} {suite}-{suffix} main\n"))
        .map_err(ImageError::io("writing", &sources))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
        // the machine's cache of what its lists say
        "Dir::Cache::pkgcache=".to_owned(),
        "Dir::Cache::srcpkgcache=".to_owned(),
    ];
    run(apt_get(&options).arg("update"), &format!("fetching the package lists of {suite}-{suffix}"))?;
    for package in packages {
        unpack_file(package, &download(package, into, &options)?, into)?;
    }
    fs::remove_dir_all(&apart).map_err(ImageError::io("removing", &apart))
}

fn unpack_file(package: &str, file: &Path, into: &Path) -> Result<(), ImageError> {
    run(Command::new("dpkg").arg("-x").arg(file).arg(into), &format!("unpacking {package}"))?;
    fs::remove_file(file).map_err(ImageError::io("removing", file))
}

/// apt-get with these options.
fn apt_get(options: &[String]) -> Command {
    let mut command = Command::new("apt-get");
    // apt's own user may not write into a folder of ours
    command.args(["-qq", "-o", "APT::Sandbox::User=root"]);
    for option in options {
        command.args(["-o", option]);
    }
    command
}

fn download(package: &str, into: &Path, options: &[String]) -> Result<PathBuf, ImageError> {
    run(apt_get(options).current_dir(into).args(["download", package]), &format!("downloading {package}"))?;
    let entries = fs::read_dir(into).map_err(ImageError::io("listing", into))?;
    let file =
        entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    file.ok_or_else(|| ImageError::Failed {
        what: format!("downloading {package}"),
        reason: "apt-get left no package file".to_owned(),
    })
}

fn update() -> Result<(), ImageError> {
    run(Command::new("apt-get").args(["-qq", "update"]), "updating apt's package lists").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_and_strangers_are_not_the_archive() {
        let listing = "http://other/|stable|main|Somebody\n\
                       http://m/debian/|bookworm-updates|main|Debian\n\
                       http://m/debian/|bookworm|contrib|Debian\n\
                       http://m/debian/|bookworm|main|Debian\n";
        let archive = Archive { uri: "http://m/debian/".to_owned(), suite: "bookworm".to_owned() };
        assert_eq!(choose(listing), Some(archive));
        assert_eq!(choose("garbage\n||main|\n"), None);
    }
}
