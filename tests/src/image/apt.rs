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
        let found = depends(&text).find(|name| name.starts_with(prefix)).map(str::to_owned);
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

/// A suite of this machine's archive, as "trixie" or "bookworm-backports", whose packages are fetched without the machine
/// noticing: its own sources and package lists stay as they are, apt is given others for the time.
pub(super) struct Suite {
    /// Where the lists are, until [`Suite::close`].
    folder: PathBuf,
    options: Vec<String>,
}

impl Suite {
    /// Fetches the suite's package lists into a folder below `inside`.
    pub(super) fn open(name: &str, inside: &Path) -> Result<Self, ImageError> {
        let Archive { uri, .. } = archive()?;
        let folder = inside.join("apt");
        let lists = folder.join("lists");
        fs::create_dir_all(lists.join("partial")).map_err(ImageError::io("creating", &lists))?;
        let sources = folder.join("sources.list");
        // Who installed Debian has its keys there; without the file apt looks where it always does.
        let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed = if keys.is_file() { format!("[signed-by={}] ", keys.display()) } else { String::new() };
        fs::write(&sources, format!("deb {signed}{uri} {name} main\n"))
            .map_err(ImageError::io("writing", &sources))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", lists.display()),
            // the machine's cache of what its lists say
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        run(
            with_options("apt-get", &options).args(["-qq", "update"]),
            &format!("fetching the package lists of {name}"),
        )?;
        Ok(Self { folder, options: options.into() })
    }

    /// This machine's release with a suffix, as "backports".
    pub(super) fn beside(suffix: &str, inside: &Path) -> Result<Self, ImageError> {
        Self::open(&format!("{}-{suffix}", archive()?.suite), inside)
    }

    /// Downloads a package and unpacks it into the folder; nothing is installed.
    pub(super) fn unpack(&self, package: &str, into: &Path) -> Result<(), ImageError> {
        fs::create_dir_all(into).map_err(ImageError::io("creating", into))?;
        unpack_file(package, &download(package, into, &self.options)?, into)
    }

    /// The packages that a metapackage stands for: what it needs, and what that needs, if the names begin so.
    pub(super) fn behind(&self, metapackage: &str, prefixes: &[&str]) -> Result<Vec<String>, ImageError> {
        let what = format!("looking up the package {metapackage}");
        let mut found: Vec<String> = Vec::new();
        let mut asked = metapackage.to_owned();
        for next in 0.. {
            let text =
                run(with_options("apt-cache", &self.options).args(["depends", asked.as_str()]), &what)?;
            let wanted = |name: &&str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            for name in depends(&text).filter(wanted) {
                if !found.iter().any(|known| known == name) {
                    found.push(name.to_owned());
                }
            }
            match found.get(next) {
                Some(name) => asked.clone_from(name),
                None => break,
            }
        }
        if found.is_empty() {
            return Err(ImageError::Failed { what, reason: format!("it needs no {}", prefixes.join(", ")) });
        }
        Ok(found)
    }

    /// Removes the package lists.
    pub(super) fn close(self) -> Result<(), ImageError> {
        fs::remove_dir_all(&self.folder).map_err(ImageError::io("removing", &self.folder))
    }
}

/// The names in what `apt-cache depends` prints.
fn depends(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "))
}

fn unpack_file(package: &str, file: &Path, into: &Path) -> Result<(), ImageError> {
    run(Command::new("dpkg").arg("-x").arg(file).arg(into), &format!("unpacking {package}"))?;
    fs::remove_file(file).map_err(ImageError::io("removing", file))
}

/// One of apt's programs with these options.
fn with_options(program: &str, options: &[String]) -> Command {
    let mut command = Command::new(program);
    // apt's own user may not write into a folder of ours
    command.args(["-o", "APT::Sandbox::User=root"]);
    for option in options {
        command.args(["-o", option]);
    }
    command
}

fn download(package: &str, into: &Path, options: &[String]) -> Result<PathBuf, ImageError> {
    run(
        with_options("apt-get", options).current_dir(into).args(["-qq", "download", package]),
        &format!("downloading {package}"),
    )?;
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

    #[test]
    fn only_what_is_needed_for_certain_counts() {
        let text =
            "linux-image-amd64\n  Depends: linux-image-6.1.0-40-amd64\n |Suggests: x\n  Depends: <y>\n";
        assert_eq!(depends(text).collect::<Vec<_>>(), ["linux-image-6.1.0-40-amd64", "<y>"]);
    }
}
