//! What the machine must have, how to see that it is there, and where it comes from. Looks at files only, so that
//! every task can afford to ask; a program that was installed by hand counts as well as Debian's.

use std::fs;
use std::path::Path;

use memdex_ebpf_build::{Toolchain, find_linker};

use super::Scope;
use crate::workspace::{find_program, root, target};

/// Something the machine must have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// In a person's words.
    pub(super) what: &'static str,
    /// What gives it on Debian.
    pub(super) packages: &'static [&'static str],
    /// What gives it elsewhere, where that is not a package of the same name.
    pub(super) elsewhere: &'static str,
}

type Probe = fn() -> bool;

const BUILD: &[(Need, Probe)] = &[
    (Need { what: "a C compiler and linker (cc)", packages: &["gcc", "libc6-dev"], elsewhere: "" }, || {
        program("cc")
    }),
    (
        Need {
            what: "a Rust toolchain that can build for bpfel-unknown-none",
            packages: &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
            elsewhere: "rustup toolchain install nightly --component rust-src",
        },
        || Toolchain::find().is_some(),
    ),
    (
        Need {
            what: "bpf-linker, or what it is built with",
            packages: &["zlib1g-dev", "libzstd-dev", "pkg-config"],
            elsewhere: "cargo install bpf-linker --version 0.13.0 --locked",
        },
        || linker().is_some(),
    ),
];

const GUESTS: &[(Need, Probe)] = &[
    (
        Need {
            what: "qemu-system-x86_64, which runs the guests",
            packages: &["qemu-system-x86"],
            elsewhere: "",
        },
        || program("qemu-system-x86_64"),
    ),
    (Need { what: "SeaBIOS, the guests' firmware", packages: &["seabios"], elsewhere: "" }, || {
        file(&["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"])
    }),
    (
        Need { what: "debootstrap, which makes the Debian guest", packages: &["debootstrap"], elsewhere: "" },
        || program("debootstrap"),
    ),
    (
        Need {
            what: "a static busybox, for the guests' initramfs",
            packages: &["busybox-static"],
            elsewhere: "",
        },
        || static_program("busybox"),
    ),
    (Need { what: "mke2fs, which makes the guests' disks", packages: &["e2fsprogs"], elsewhere: "" }, || {
        program("mke2fs")
    }),
    (Need { what: "xz, for compressed kernel modules", packages: &["xz-utils"], elsewhere: "" }, || {
        program("xz")
    }),
    (
        Need { what: "b3sum, the outside hash the map is checked with", packages: &["b3sum"], elsewhere: "" },
        || program("b3sum"),
    ),
    (
        Need {
            what: "ip, which makes the hosts' network namespaces",
            packages: &["iproute2"],
            elsewhere: "",
        },
        || program("ip"),
    ),
];

const COUNTING: &[(Need, Probe)] =
    &[(Need { what: "valgrind, which counts instructions", packages: &["valgrind"], elsewhere: "" }, || {
        program("valgrind")
    })];

/// What the scope needs and the machine lacks.
pub(super) fn missing(scope: Scope) -> Vec<&'static Need> {
    let more = match scope {
        Scope::Build => &[],
        Scope::Guests => GUESTS,
        Scope::Counting => COUNTING,
    };
    BUILD.iter().chain(more).filter(|(_, is_there)| !is_there()).map(|(need, _)| need).collect()
}

/// One line for each need, with what gives it.
pub(super) fn list(head: &str, missing: &[&Need]) -> String {
    let mut text = head.to_owned();
    for need in missing {
        text.push_str(&format!(
            "\n  {}: Debian package{} {}",
            need.what,
            plural(need.packages),
            need.packages.join(" ")
        ));
        if !need.elsewhere.is_empty() {
            text.push_str(&format!("; elsewhere `{}`", need.elsewhere));
        }
    }
    text
}

fn plural(items: &[&str]) -> &'static str {
    if items.len() == 1 { "" } else { "s" }
}

/// The `bpf-linker` the build will take.
pub(super) fn linker() -> Option<std::path::PathBuf> {
    find_linker(&[&target(), &root()])
}

fn program(name: &str) -> bool {
    find_program(name).is_some()
}

fn file(any: &[&str]) -> bool {
    any.iter().any(|path| Path::new(path).exists())
}

/// A program that needs no interpreter (`ld.so`): the only kind that runs in an initramfs of its own.
fn static_program(name: &str) -> bool {
    find_program(name)
        .and_then(|path| fs::read(path).ok())
        // the interpreter's name stands right behind the program headers
        .is_some_and(|bytes| {
            !bytes.iter().take(4096).copied().collect::<Vec<_>>().windows(7).any(|w| w == b"/ld-lin")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_says_what_gives_it() {
        for (need, _) in BUILD.iter().chain(GUESTS).chain(COUNTING) {
            assert!(!need.packages.is_empty(), "{}", need.what);
            let line = list("missing:", &[need]);
            assert_eq!(line.lines().count(), 2);
            assert!(line.contains(need.packages[0]));
        }
    }
}
