//! Keeps the outer build's settings out of the inner one.
//!
//! A build script runs with the outer cargo's toolchain, flags and package in its environment. The inner build has
//! another toolchain and another target: with the outer `RUSTC`, `RUSTFLAGS` or `CARGO_TARGET_DIR` it would fail in
//! ways that name neither.

use std::ffi::OsStr;
use std::process::Command;

/// Removes from the command everything cargo or rustup set for the outer build, and keeps what says how to reach the
/// registry.
pub(crate) fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if belongs_to_outer_build(&name) {
            command.env_remove(name);
        }
    }
}

fn belongs_to_outer_build(name: &OsStr) -> bool {
    const KEPT: &[&str] =
        &["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_HOME"];
    const OUTER: &[&str] = &["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP", "DEP_"];
    const OUTER_EXACT: &[&str] = &[
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "OUT_DIR", // set for build scripts
        "MAKEFLAGS",
        "MFLAGS", // the outer job server, whose file descriptors the inner cargo does not have
        "LD_LIBRARY_PATH", // the outer toolchain's libraries
    ];
    let Some(name) = name.to_str() else { return false };
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    (starts(OUTER) && !starts(KEPT)) || OUTER_EXACT.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchain_and_target_stay_outside() {
        for name in [
            "RUSTC",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_MAKEFLAGS",
            "OUT_DIR",
            "LD_LIBRARY_PATH",
        ] {
            assert!(belongs_to_outer_build(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_way_to_the_registry_stays() {
        for name in
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX", "PATH", "HOME", "https_proxy"]
        {
            assert!(!belongs_to_outer_build(OsStr::new(name)), "{name}");
        }
    }
}
