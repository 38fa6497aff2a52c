//! Installs packages with apt. Says what it does and how long that takes; apt's own words go to a log that is quoted only
//! when something fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::needs::{self, Need};
use crate::workspace::{Failure, Outcome, target};

/// Installs what the needs name, or says why that can't be done here.
pub(super) fn install(missing: &[&Need]) -> Outcome {
    let all: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    let packages = not_installed(&all);
    if packages.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(Failure::new(needs::list(
            "this is not a Debian system, so these have to be installed by hand (then run this again):",
            missing,
        )));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(format!(
            "{}\nInstalling them needs root. Run:\n  sudo apt-get update && sudo apt-get install {}",
            needs::list("these are missing:", missing),
            packages.join(" ")
        )));
    }
    install_packages(&packages)
}

/// Installs packages by name; the caller knows that this is Debian and root.
pub(super) fn install_packages(packages: &[&str]) -> Outcome {
    eprintln!("setup: installing {} (up to some minutes)", packages.join(" "));
    if let Err(failure) = apt(&["update"]) {
        // One broken source among several is no reason to stop: the packages may well be in the lists there are.
        eprintln!("setup: going on with the package lists there are; {}", failure.message);
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// True if apt can install the package.
pub(super) fn is_available(package: &str) -> bool {
    let output = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)"))
    })
}

fn not_installed<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let installed = |package: &str| {
        Command::new("dpkg-query")
            .args(["-W", "-f", "${db:Status-Status}", package])
            .stderr(Stdio::null())
            .output()
            .is_ok_and(|output| output.stdout == b"installed")
    };
    packages.iter().copied().filter(|package| !installed(package)).collect()
}

fn apt(arguments: &[&str]) -> Outcome {
    let log = log_path();
    let file = File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
    let (output, errors) =
        file.map_err(|error| Failure::new(format!("{} can't be written: {error}", log.display())))?;
    let status = Command::new("apt-get")
        // another apt (unattended upgrades) may hold the lock for a while
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .envs([("DEBIAN_FRONTEND", "noninteractive"), ("NEEDRESTART_SUSPEND", "1"), ("LC_ALL", "C")])
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .status()
        .map_err(|error| Failure::new(format!("apt-get can't be run: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let words = fs::read_to_string(&log).unwrap_or_default();
    Err(Failure::new(format!(
        "`apt-get {}` failed; its last words (all of them are in {}):\n{}",
        arguments.join(" "),
        log.display(),
        tail(&words, 8)
    )))
}

fn log_path() -> PathBuf {
    target().join("setup-apt.log")
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_last_lines() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
