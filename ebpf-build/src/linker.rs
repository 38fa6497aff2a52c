//! Where `bpf-linker` is. rustc emits bitcode for the BPF target; only this linker makes an object of it.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The program's name.
pub const LINKER: &str = "bpf-linker";

/// Finds `bpf-linker`: first the one `cargo xtask setup` built (`tools/bin` in a target folder), then PATH, then cargo's
/// own bin folder.
///
/// `near` are paths inside or beside the target folder (a build script's output folder, the source folder): the
/// folders above them are searched for `tools/bin` and `target/tools/bin`.
#[must_use]
pub fn find_linker(near: &[&Path]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    candidates(near, &path, cargo_home.as_deref()).into_iter().find(|candidate| candidate.is_file())
}

fn candidates(near: &[&Path], path: &OsStr, cargo_home: Option<&Path>) -> Vec<PathBuf> {
    let built = near
        .iter()
        .flat_map(|start| start.ancestors())
        .flat_map(|folder| [folder.join("tools/bin"), folder.join("target/tools/bin")]);
    let home = cargo_home.map(|home| home.join("bin"));
    built.chain(env::split_paths(path)).chain(home).map(|folder| folder.join(LINKER)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_of_setup_comes_before_the_users_own() {
        let out = Path::new("/w/target/debug/build/indexer-1/out");
        let source = Path::new("/w/indexer-ebpf");
        let order = candidates(&[out, source], OsStr::new("/usr/bin"), Some(Path::new("/home/u/.cargo")));
        let at = |path: &str| order.iter().position(|p| p == Path::new(path)).expect(path);
        assert!(at("/w/target/tools/bin/bpf-linker") < at("/usr/bin/bpf-linker"));
        assert!(at("/usr/bin/bpf-linker") < at("/home/u/.cargo/bin/bpf-linker"));
    }
}
