//! Builds the eBPF programs and tells the crate where the object is (`MEMDEX_EBPF_OBJECT_FILE`).
//!
//! A machine without the BPF toolchain gets one sentence, not a page of compiler errors.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("indexer-ebpf");
    for path in memdex_ebpf_build::rerun_paths(&source) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={}", memdex_ebpf_build::PREBUILT_VARIABLE);

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    match memdex_ebpf_build::build(&source, &out) {
        Ok(object) => println!("cargo::rustc-env=MEMDEX_EBPF_OBJECT_FILE={}", object.display()),
        Err(error) => {
            for line in error.details().into_iter().flat_map(str::lines) {
                println!("cargo::error={line}");
            }
            println!("cargo::error={error}");
        }
    }
}
