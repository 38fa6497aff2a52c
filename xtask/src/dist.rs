//! `cargo xtask dist`: what is installed on a host, in one archive.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::setup::{self, Scope};
use crate::workspace::{Failure, Outcome, cargo, root, run, target};

/// Build what is installed on a host and pack it into target/dist, with a checksum.
#[derive(clap::Args)]
#[command(after_help = "\
The archive holds one folder: the programs memdexd and memdex, a systemd unit, an example configuration, and the papers.
Packing the same programs again gives the same bytes.")]
pub(crate) struct Arguments {}

/// Files of the repository that are packed beside the programs, under the same paths, so that the links in them work.
const PAPERS: [&str; 18] = [
    "README.md",
    "LICENSE",
    "ARCHITECTURE.md",
    "COMPARE.md",
    "CONTRIBUTING.md",
    "SPECIFICATION.md",
    "openapi.json",
    "docs/curves.md",
    "docs/curves.svg",
    "docs/demo.txt",
    "docs/guest-cost.md",
    "docs/hot-pages.md",
    "docs/large-host.md",
    "docs/migration.md",
    "docs/migration.svg",
    "migrate-client/examples/migrate.rs",
    "dist/memdexd.service",
    "dist/memdexd.toml",
];

pub(crate) fn main(_: &Arguments) -> Outcome {
    setup::ensure(Scope::Build)?;
    eprintln!("dist: building with optimisation (some minutes the first time)");
    run(cargo().args(["build", "--release", "--locked", "-p", "indexer", "-p", "migrate-client", "--bins"]))?;

    let name = format!("memdex-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let out = target().join("dist");
    let folder = out.join(&name);
    let _ = fs::remove_dir_all(&folder);
    create(&folder)?;
    for program in ["memdexd", "memdex"] {
        let packed = folder.join(program);
        copy(&target().join("release").join(program), &packed)?;
        run(Command::new("strip").arg(&packed))?;
    }
    for paper in PAPERS {
        create(folder.join(paper).parent().unwrap_or(&folder))?;
        copy(&root().join(paper), &folder.join(paper))?;
    }
    let archive = format!("{name}.tar.gz");
    // Names in order, one owner, one time: the bytes depend on nothing but the files.
    run(Command::new("tar").current_dir(&out).args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
        "--use-compress-program=gzip -9n",
        "-cf",
        &archive,
        &name,
    ]))?;
    let sums = Command::new("sha256sum")
        .current_dir(&out)
        .arg(&archive)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .ok_or_else(|| Failure::new("sha256sum failed: is coreutils installed?"))?;
    let checksum = out.join(format!("{archive}.sha256"));
    fs::write(&checksum, &sums.stdout)
        .map_err(|error| Failure::new(format!("{} can't be written: {error}", checksum.display())))?;
    println!("{}", out.join(&archive).display());
    println!("{}", checksum.display());
    Ok(())
}

fn create(folder: &Path) -> Outcome {
    fs::create_dir_all(folder)
        .map_err(|error| Failure::new(format!("{} can't be made: {error}", folder.display())))
}

fn copy(from: &Path, to: &Path) -> Outcome {
    fs::copy(from, to).map(drop).map_err(|error| {
        Failure::new(format!("{} can't be copied to {}: {error}", from.display(), to.display()))
    })
}
