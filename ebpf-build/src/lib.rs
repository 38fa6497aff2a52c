//! Finds a BPF toolchain and builds `indexer-ebpf` with it.
//!
//! Used by `indexer/build.rs`, which embeds the object in `memdexd`, and by `cargo xtask`. It never installs
//! anything: what is missing is named in one sentence, and `cargo xtask setup` installs it.
//!
//! The ways to an object, tried in this order:
//! 1. `MEMDEX_EBPF_OBJECT` names one that was built elsewhere;
//! 2. a toolchain with the ready-made standard library of the BPF target (Debian's packages);
//! 3. a toolchain with `rust-src` (rustup's component), whose `core` is compiled on the way.

#![forbid(unsafe_code)]

mod environment;
mod error;
mod linker;
mod object;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use error::BuildError;
pub use linker::{LINKER, find_linker};
pub use toolchain::{Library, TARGET, Toolchain};

/// Names an eBPF object that was built elsewhere; nothing is compiled then.
pub const PREBUILT_VARIABLE: &str = "MEMDEX_EBPF_OBJECT";

/// The binary of `indexer-ebpf`, and the name of the object in the output folder.
pub const OBJECT: &str = "memdex-ebpf";

/// Output of the inner cargo, beside the object; the first place to look when a build is odd.
pub const LOG_NAME: &str = "memdex-ebpf.log";

/// Builds the eBPF programs in `source_dir` (the package folder of `indexer-ebpf`) and returns the object's path,
/// which is `out_dir/memdex-ebpf`.
///
/// `out_dir` also takes the inner target folder (`bpf/`) and the compiler's output (`memdex-ebpf.log`). It is made
/// if it is missing. Prints nothing; a caller that is a build script emits its own `cargo::` lines, see
/// [`rerun_paths`].
///
/// # Errors
/// Each says in one sentence what is missing or failed and what to do, see [`BuildError`].
pub fn build(source_dir: &Path, out_dir: &Path) -> Result<PathBuf, BuildError> {
    fs::create_dir_all(out_dir).map_err(|source| BuildError::io("creating", out_dir, source))?;
    fs::read_dir(source_dir).map_err(|source| BuildError::io("listing", source_dir, source))?;
    let object = out_dir.join(OBJECT);

    if let Some(prebuilt) = std::env::var_os(PREBUILT_VARIABLE).filter(|value| !value.is_empty()) {
        let prebuilt = PathBuf::from(prebuilt);
        object::check(&prebuilt).map_err(|reason| BuildError::Prebuilt { path: prebuilt.clone(), reason })?;
        install(&prebuilt, &object)?;
        return Ok(object);
    }

    let toolchain = Toolchain::find().ok_or(BuildError::NoToolchain)?;
    let linker = find_linker(&[out_dir, source_dir]).ok_or(BuildError::NoLinker)?;
    let built = compile(&toolchain, &linker, source_dir, out_dir)?;
    object::check(&built).map_err(|reason| BuildError::Object { path: built.clone(), reason })?;
    install(&built, &object)?;
    Ok(object)
}

/// What a build script should watch (`cargo::rerun-if-changed`): sources and manifests of `indexer-ebpf` and of the
/// types it shares with the daemon.
#[must_use]
pub fn rerun_paths(source_dir: &Path) -> Vec<PathBuf> {
    let common = source_dir.with_file_name("indexer-common");
    ["src", "Cargo.toml", "Cargo.lock"]
        .iter()
        .map(|name| source_dir.join(name))
        .chain(["src", "Cargo.toml"].iter().map(|name| common.join(name)))
        // cargo runs a build script every time when a path it watches does not exist
        .filter(|path| path.exists())
        .collect()
}

fn compile(
    toolchain: &Toolchain,
    linker: &Path,
    source_dir: &Path,
    out_dir: &Path,
) -> Result<PathBuf, BuildError> {
    let target_dir = out_dir.join("bpf");
    let mut command = Command::new(&toolchain.cargo);
    environment::clean(&mut command);
    command
        .current_dir(source_dir)
        .arg("build")
        .args(["--release", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC", &toolchain.rustc)
        // aya-ebpf turns on language features that a stable compiler only grants this way
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(linker))
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null());
    if source_dir.join("Cargo.lock").exists() {
        command.arg("--locked");
    }
    if toolchain.library == Library::Source {
        command.args(["-Z", "build-std=core"]);
    }

    let output = command.output().map_err(|source| BuildError::io("running", &toolchain.cargo, source))?;
    let log = out_dir.join(LOG_NAME);
    fs::write(&log, [&output.stdout[..], &output.stderr[..]].concat())
        .map_err(|source| BuildError::io("writing", &log, source))?;
    if !output.status.success() {
        let details = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BuildError::Compile { log, details });
    }
    Ok(target_dir.join(TARGET).join("release").join(OBJECT))
}

/// The flags of the inner build, in cargo's encoding (paths may hold spaces).
fn rust_flags(linker: &Path) -> String {
    let architecture =
        std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| std::env::consts::ARCH.to_owned());
    [
        format!("-Clinker={}", linker.display()),
        // `--btf` makes the linker emit type information, which it derives from the debug information
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        // the layout of `pt_regs` differs between the machines the programs run on
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
    ]
    .join("\x1f")
}

/// Leaves an object that is already the same alone: cargo would take it for a change, and the two may be one file.
fn install(from: &Path, to: &Path) -> Result<(), BuildError> {
    let bytes = fs::read(from).map_err(|source| BuildError::io("reading", from, source))?;
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    fs::write(to, bytes).map_err(|source| BuildError::io("writing", to, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_survive_a_linker_path_with_spaces() {
        let flags = rust_flags(Path::new("/a folder/bpf-linker"));
        assert!(flags.split('\x1f').any(|flag| flag == "-Clinker=/a folder/bpf-linker"));
    }

    #[test]
    fn an_object_installed_over_itself_stays_whole() {
        let folder = tempfile::tempdir().unwrap();
        let object = folder.path().join(OBJECT);
        fs::write(&object, "bytes").unwrap();
        install(&object, &object).unwrap();
        assert_eq!(fs::read(&object).unwrap(), b"bytes");
    }

    #[test]
    fn only_existing_paths_are_watched() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("indexer-ebpf");
        fs::create_dir_all(source.join("src")).unwrap();
        fs::create_dir_all(folder.path().join("indexer-common/src")).unwrap();
        assert_eq!(rerun_paths(&source), [source.join("src"), folder.path().join("indexer-common/src")]);
    }
}
