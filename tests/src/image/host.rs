//! The initramfs of a host under test: busybox, the programs to be tried with the libraries they need, KVM's modules, and
//! an init that runs the checks. Owns packing it; what is checked is [`crate::kernel_matrix`]'s.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::ImageError;
use super::host_kernel::HostKernel;
use super::modules::Module;
use super::run::run;
use super::tiny;

const INIT: &str = include_str!("files/host_init.sh");

/// A program for the host, and the path it gets there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProgram {
    /// Where it is on this machine.
    pub file: PathBuf,
    /// Where it goes, without a slash in front.
    pub place: String,
}

/// Packs programs, without the parts that only a debugger needs, and the libraries they are linked with; once for all kernels.
///
/// # Errors
/// A file can't be read, or `strip` (of binutils) or `ldd` is missing.
pub fn pack(programs: &[HostProgram], folder: &Path) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
    fs::create_dir_all(folder).map_err(ImageError::io("creating", folder))?;
    let mut packed = Vec::new();
    let mut libraries = BTreeSet::new();
    for program in programs {
        let stripped = folder.join("stripped");
        run(
            Command::new("strip").arg("-o").arg(&stripped).arg(&program.file),
            &format!("packing {}", program.file.display()),
        )?;
        packed.push((
            program.place.clone(),
            fs::read(&stripped).map_err(ImageError::io("reading", &stripped))?,
        ));
        fs::remove_file(&stripped).map_err(ImageError::io("removing", &stripped))?;
        let listing = run(
            Command::new("ldd").arg(&program.file),
            &format!("asking for the libraries of {}", program.file.display()),
        )?;
        libraries.extend(libraries_in(&listing));
    }
    for library in libraries {
        let bytes = fs::read(&library).map_err(ImageError::io("reading", Path::new(&library)))?;
        packed.push((library.trim_start_matches('/').to_owned(), bytes));
    }
    Ok(packed)
}

/// Writes the initramfs of a host with this kernel.
///
/// # Errors
/// busybox is not installed, or a file can't be read or written.
pub fn write_initramfs(
    kernel: &HostKernel,
    packed: &[(String, Vec<u8>)],
    to: &Path,
) -> Result<(), ImageError> {
    let modules = kernel.modules.iter().map(|file| {
        let bytes = fs::read(file).map_err(ImageError::io("reading", file))?;
        // numbered already, and packing numbers them again
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Module { name: name.into_owned(), bytes })
    });
    let mut archive = tiny::base(&modules.collect::<Result<Vec<_>, ImageError>>()?)?;
    archive.program("init", INIT.as_bytes());
    let mut folders = BTreeSet::from(["bin".to_owned(), "modules".to_owned()]);
    for (place, bytes) in packed {
        for folder in folders_of(place) {
            if folders.insert(folder.clone()) {
                archive.folder(&folder);
            }
        }
        archive.program(place, bytes);
    }
    tiny::write(to, archive)
}

/// `a/b/c` is in `a` and `a/b`.
fn folders_of(place: &str) -> impl Iterator<Item = String> {
    place.match_indices('/').map(|(end, _)| place[..end].to_owned())
}

/// Paths in what ldd prints: `libc.so.6 => /lib/…/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn libraries_in(listing: &str) -> impl Iterator<Item = String> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        let found: Vec<_> = libraries_in(listing).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(folders_of("lib/x/libc.so.6").collect::<Vec<_>>(), ["lib", "lib/x"]);
    }
}
