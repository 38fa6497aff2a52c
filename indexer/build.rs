//! Builds the eBPF programs and leaves the object where `watch/ebpf/object.rs` embeds it from.

use std::path::PathBuf;

fn main() {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../indexer-ebpf");
    for input in ["src", "Cargo.toml", "Cargo.lock", "../indexer-common/src", "../indexer-common/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", source.join(input).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let result = memdex_ebpf_build::build(&source, &out).and_then(|object| {
        std::fs::copy(&object, out.join(memdex_ebpf_build::OBJECT)).map(drop).map_err(|error| {
            memdex_ebpf_build::BuildError::Io { doing: format!("copying {}", object.display()), error }
        })
    });
    if let Err(error) = result {
        // One message instead of a panic's backtrace.
        println!("cargo::error={}", error.to_string().replace('\n', "\ncargo::error="));
    }
}
