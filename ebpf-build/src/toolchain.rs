//! Which Rust toolchain can build for the BPF target. Only looks at files; runs nothing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The target triple: BPF, little endian, as every host memdex supports.
pub const TARGET: &str = "bpfel-unknown-none";

/// How a toolchain comes by `core` for the BPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// It is there, compiled (Debian's `libstd-rust-web-dev-bpf`).
    ReadyMade,
    /// Its sources are there (`rust-src`): cargo compiles it with `-Z build-std=core`.
    Source,
}

/// A cargo and a rustc that belong together and can build for [`TARGET`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The cargo to run.
    pub cargo: PathBuf,
    /// The compiler it has to use.
    pub rustc: PathBuf,
    /// Where `core` comes from.
    pub library: Library,
}

impl Toolchain {
    /// The best toolchain on this machine: one with a ready-made library if there is one (nothing to download, quick),
    /// else one with sources, nightly before the others.
    #[must_use]
    pub fn find() -> Option<Self> {
        choose(&sysroots())
    }

    fn at(sysroot: &Path, library: Library) -> Option<Self> {
        let rustlib = sysroot.join("lib/rustlib");
        let usable = match library {
            Library::ReadyMade => holds_core(&rustlib.join(TARGET).join("lib")),
            Library::Source => rustlib.join("src/rust/library/core/src/lib.rs").is_file(),
        };
        let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
        (usable && cargo.is_file() && rustc.is_file()).then_some(Self { cargo, rustc, library })
    }
}

fn choose(sysroots: &[PathBuf]) -> Option<Toolchain> {
    [Library::ReadyMade, Library::Source]
        .into_iter()
        .find_map(|library| sysroots.iter().find_map(|sysroot| Toolchain::at(sysroot, library)))
}

fn holds_core(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// The system's prefix and the toolchains of rustup, nightly first.
fn sysroots() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from("/usr"), PathBuf::from("/usr/local")];
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    if let Some(rustup) = rustup {
        let mut toolchains: Vec<PathBuf> = fs::read_dir(rustup.join("toolchains"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        toolchains.sort_by_key(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (!name.starts_with("nightly"), !name.starts_with("stable"), name)
        });
        all.append(&mut toolchains);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysroot(parent: &Path, name: &str, files: &[&str]) -> PathBuf {
        let root = parent.join(name);
        for file in ["bin/cargo", "bin/rustc"].iter().chain(files) {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        root
    }

    const SOURCE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";
    const READY: &str = "lib/rustlib/bpfel-unknown-none/lib/libcore-0123.rlib";

    #[test]
    fn a_ready_made_library_wins_over_sources() {
        let folder = tempfile::tempdir().unwrap();
        let source = sysroot(folder.path(), "a", &[SOURCE]);
        let ready = sysroot(folder.path(), "b", &[READY]);
        let chosen = choose(&[source.clone(), ready.clone()]).unwrap();
        assert_eq!((chosen.library, chosen.rustc), (Library::ReadyMade, ready.join("bin/rustc")));
        let chosen = choose(std::slice::from_ref(&source)).unwrap();
        assert_eq!((chosen.library, chosen.cargo), (Library::Source, source.join("bin/cargo")));
    }

    #[test]
    fn a_compiler_alone_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let plain = sysroot(folder.path(), "plain", &[]);
        let no_cargo = sysroot(folder.path(), "no-cargo", &[READY]);
        fs::remove_file(no_cargo.join("bin/cargo")).unwrap();
        assert_eq!(choose(&[plain, no_cargo]), None);
    }
}
