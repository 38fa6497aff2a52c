//! bpf-linker, built into the target folder where the machine has none. It must know the bitcode that the compiler
//! writes, so it is built against the same major version of LLVM.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use memdex_ebpf_build::{LINKER, Toolchain};

use super::{debian, needs};
use crate::workspace::{Failure, Outcome, cargo, run, target};

/// aya 0.14's companion. Its features name the LLVM it is built against: llvm-21, llvm-22, llvm-23.
const VERSION: &str = "0.13.0";

pub(super) fn ensure() -> Outcome {
    if needs::linker().is_some() {
        return Ok(());
    }
    let llvm = llvm()?;
    let prefix = prefix(llvm);
    if !prefix.join("bin/llvm-config").exists() {
        debian::install_packages(&[&format!("llvm-{llvm}-dev")])?;
    }

    eprintln!("setup: building {LINKER} {VERSION} with LLVM {llvm} (about two minutes)");
    let tools = target().join("tools");
    let build = tools.join("build");
    run(cargo()
        .args(["install", LINKER, "--version", VERSION, "--locked", "--quiet", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(&build)
        .env("LLVM_PREFIX", &prefix))?;
    // half a gigabyte that nobody needs again
    let _ = fs::remove_dir_all(&build);
    Ok(())
}

/// The LLVM to build against: the compiler's.
fn llvm() -> Result<u32, Failure> {
    let compilers = || Toolchain::find().and_then(|toolchain| version_of(&toolchain.rustc));
    let llvm =
        compilers().ok_or_else(|| Failure::new("the LLVM version of the BPF toolchain can't be told"))?;
    if prefix(llvm).join("bin/llvm-config").exists() || debian::is_available(&format!("llvm-{llvm}-dev")) {
        return Ok(llvm);
    }
    Err(Failure::new(format!(
        "{LINKER} has to be built with LLVM {llvm}, which the system does not offer: run `cargo install {LINKER} \
         --version {VERSION} --locked` with an LLVM {llvm} of your own, then this again"
    )))
}

fn prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

fn version_of(rustc: &std::path::Path) -> Option<u32> {
    let output = Command::new(rustc).arg("-vV").output().ok()?;
    llvm_major(&String::from_utf8_lossy(&output.stdout))
}

fn llvm_major(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_llvm_is_read_from_its_own_words() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
