//! Kernel modules with everything they need, in the order they must be loaded.
//!
//! A package of Debian's that was unpacked and not installed has no `modules.dep`; each module names what it needs
//! itself (`depends=` in its .modinfo section). That also follows a kernel version that needs others.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::ImageError;

/// A module, uncompressed.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// The wanted modules of `folder` (`lib/modules/VERSION`) and what they need, each after what it needs. Modules that are
/// built into the kernel are left out.
pub(super) fn in_order(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>, ImageError> {
    let mut files = HashMap::new();
    collect(&folder.join("kernel"), &mut files)?;
    let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let builtin: Vec<String> = builtin.lines().filter_map(|line| name_of(Path::new(line))).collect();
    let mut done = Vec::new();
    for name in wanted {
        visit(&normal(name), folder, &files, &builtin, &mut done)?;
    }
    Ok(done)
}

fn visit(
    name: &str,
    folder: &Path,
    files: &HashMap<String, PathBuf>,
    builtin: &[String],
    done: &mut Vec<Module>,
) -> Result<(), ImageError> {
    if done.iter().any(|module| module.name == name) || builtin.iter().any(|module| module == name) {
        return Ok(());
    }
    let file = files
        .get(name)
        .ok_or_else(|| ImageError::NoModule { module: name.to_owned(), folder: folder.to_owned() })?;
    let bytes = read(file)?;
    for needed in needs(&bytes) {
        visit(&needed, folder, files, builtin, done)?;
    }
    done.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// File names and module names differ in `-` and `_`.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// `…/virtio-rng.ko.xz` → `virtio_rng`
fn name_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str()?.split_once(".ko").map(|(stem, _)| normal(stem))
}

fn collect(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<(), ImageError> {
    for entry in fs::read_dir(folder).map_err(ImageError::io("listing", folder))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The module's bytes. Newer Debian kernels have them compressed; busybox in the guest could not load those.
fn read(file: &Path) -> Result<Vec<u8>, ImageError> {
    let tool = match file.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(file).map_err(ImageError::io("reading", file)),
    };
    let output = Command::new(tool).arg("-dc").arg(file).output();
    let output = output.map_err(|_| ImageError::NoProgram { program: tool.to_owned() })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(ImageError::Failed {
            what: format!("unpacking {}", file.display()),
            reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(normal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_before_it_and_built_in_ones_do_not_come() {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        fs::write(drivers.join("virtio_blk.ko"), b"\x7fELF\0depends=virtio,ring-core,crc\0name=x\0").unwrap();
        fs::write(drivers.join("virtio.ko"), b"\x7fELF\0depends=ring-core\0").unwrap();
        fs::write(drivers.join("ring-core.ko"), b"\x7fELF\0depends=\0").unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/lib/crc.ko\n").unwrap();

        let names = |wanted: &[&str]| {
            in_order(folder.path(), wanted).map(|all| all.into_iter().map(|m| m.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["virtio_blk", "virtio"]).unwrap(), ["ring_core", "virtio", "virtio_blk"]);
        assert!(names(&["missing"]).unwrap_err().to_string().contains("missing"));
    }
}
