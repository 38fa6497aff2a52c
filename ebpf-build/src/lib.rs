//! Builds `indexer-ebpf` with whatever BPF toolchain there is.
//!
//! Owns finding the toolchain and the one `cargo build` with it. Never installs anything: that is `cargo xtask setup`.
#![forbid(unsafe_code)]

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// Name of the object, in the build's target folder and wherever it is copied to.
pub const OBJECT: &str = "memdex-ebpf";

/// Target the programs are built for.
pub const TARGET: &str = "bpfel-unknown-none";

/// Why the programs could not be built.
#[derive(Debug)]
pub enum BuildError {
    /// No toolchain that can build for [`TARGET`].
    NoToolchain,
    /// No bpf-linker.
    NoLinker,
    /// The compiler could not be started or the object not be copied.
    Io {
        /// What was tried.
        doing: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The compiler reported errors.
    Failed {
        /// What it wrote.
        output: String,
    },
}

impl std::error::Error for BuildError {}

impl std::fmt::Display for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoToolchain => write!(
                f,
                "The eBPF programs cannot be built because no Rust toolchain here has the {TARGET} target; run `cargo xtask setup`, \
                 which installs it."
            ),
            Self::NoLinker => write!(
                f,
                "The eBPF programs cannot be linked because `bpf-linker` is missing; run `cargo xtask setup`, which installs it."
            ),
            Self::Io { doing, error } => write!(f, "The eBPF programs cannot be built: {doing}: {error}."),
            Self::Failed { output } => {
                write!(f, "The eBPF programs do not compile (see indexer-ebpf/):\n{output}")
            }
        }
    }
}

/// Builds the programs in `source` (the folder of `indexer-ebpf`), with intermediate files and the object below `out`.
///
/// Returns the path of the object.
///
/// # Errors
///
/// See [`BuildError`]; each is a sentence that says what to do.
pub fn build(source: &Path, out: &Path) -> Result<PathBuf, BuildError> {
    let cargo = Path::new("/usr/bin/cargo");
    let rustc = Path::new("/usr/bin/rustc");
    if !has_target(rustc) {
        return Err(BuildError::NoToolchain);
    }
    let path = path_with_linker()?;
    let target_dir = out.join("ebpf-target");
    let mut command = Command::new(cargo);
    // The build this one runs in has set variables for its own compiler and target.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_ENCODED", "CARGO_CFG", "CARGO_FEATURE", "CARGO_PKG", "CARGO_BUILD", "CARGO_PROFILE", "CARGO_TARGET"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
            || ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "TARGET", "HOST"].contains(&&*text)
        {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(source)
        .env("PATH", path)
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1") // aya-ebpf uses feature gates
        .env("RUSTFLAGS", "-C link-arg=--btf -C debuginfo=2") // BTF describes the maps to the kernel
        .args(["build", "--locked", "--release", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    let output = command
        .output()
        .map_err(|error| BuildError::Io { doing: format!("starting {}", cargo.display()), error })?;
    if !output.status.success() {
        return Err(BuildError::Failed { output: String::from_utf8_lossy(&output.stderr).into_owned() });
    }
    Ok(target_dir.join(TARGET).join("release").join(OBJECT))
}

/// Whether this compiler has a ready-made core library for the target.
fn has_target(rustc: &Path) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").output() else {
        return false;
    };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
}

/// `PATH` with cargo's own folder of binaries in it, where `cargo install` puts the linker.
fn path_with_linker() -> Result<OsString, BuildError> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    folders.extend(cargo_home.map(|home| home.join("bin")));
    if !folders.iter().any(|folder| folder.join("bpf-linker").is_file()) {
        return Err(BuildError::NoLinker);
    }
    std::env::join_paths(folders).map_err(|_| BuildError::NoLinker)
}
