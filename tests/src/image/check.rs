//! `memdex-check`, the program by which a guest watches over its own memory: how it comes into images, and how it is
//! told what to do. The program itself is `src/bin/guest-check`.

use std::fmt;
use std::fs;
use std::process::Command;

use super::error::ImageError;
use super::run::run;
use super::store::{self, Recipe};

/// Its name in the guests.
pub(super) const NAME: &str = "memdex-check";
const SOURCES: [(&str, &str); 4] = [
    ("main.rs", include_str!("../bin/guest-check/main.rs")),
    ("area.rs", include_str!("../bin/guest-check/area.rs")),
    ("content.rs", include_str!("../bin/guest-check/content.rs")),
    ("registers.rs", include_str!("../bin/guest-check/registers.rs")),
];

/// How a guest checks its memory. Displays as arguments for the kernel command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// How much memory it writes and checks, in MiB.
    pub mib: u32,
    /// Pages it writes in a second; 0 is as many as it can.
    pub rate: u32,
    /// Pages beside these that it writes all the time: a hundred times a second, or as often as it can.
    pub hot: u32,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mib, rate, hot } = self;
        write!(f, "memdex.check={mib} memdex.check_rate={rate} memdex.check_hot={hot}")
    }
}

/// Sources that the recipe of an image with the program in it must name.
pub(super) fn parts() -> impl Iterator<Item = String> {
    SOURCES.into_iter().map(|(_, text)| text.to_owned())
}

/// The program, for a guest that has no libraries.
pub(super) fn program() -> Result<Vec<u8>, ImageError> {
    let recipe = Recipe { name: "check", takes: "some seconds", parts: parts().collect() };
    let folder = store::ensure(&recipe, |folder| {
        for (name, text) in SOURCES {
            let path = folder.join(name);
            fs::write(&path, text).map_err(ImageError::io("writing", &path))?;
        }
        // Cargo says which compiler it uses.
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        run(
            Command::new(compiler)
                .current_dir(folder)
                .args(["--edition", "2024", "--crate-name", "memdex_check", "--cap-lints", "allow"])
                .args(["-C", "opt-level=3", "-C", "panic=abort", "-C", "strip=symbols"])
                .args(["-C", "target-feature=+crt-static", "-o", NAME, "main.rs"]),
            "compiling the guests' check of their memory",
        )
        .map(drop)
    })?;
    let path = folder.join(NAME);
    fs::read(&path).map_err(ImageError::io("reading", &path))
}
