//! The folder of the maps: finding, making and removing the files.
//!
//! Owns their names (`vm-PID-STARTTIME`, as the VM is called) and the checks on who can have made one.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use rustix::fs::{FallocateFlags, FlockOperation};

use super::{CHUNKS, HEAD, Left, SLOTS, Store, TABLE, area::Area};
use crate::{vm::descriptor::ProcessId, watch::process::identify};

/// statfs(2) says so of a ramfs, linux/magic.h.
const RAMFS_MAGIC: libc::c_long = 0x858458f6;

/// See the module.
#[derive(Debug, Clone)]
pub struct MapFolder {
    path: PathBuf,
}

impl MapFolder {
    /// Maps are kept in this folder, which is made when it is needed. It should be on tmpfs.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Whether what is written there stays in memory: on a disk each change of a map would be written sooner or later. None if it cannot be told.
    #[must_use]
    pub fn in_memory(&self) -> Option<bool> {
        // The folder itself may be yet to be made.
        let system = self.path.ancestors().find_map(|path| rustix::fs::statfs(path).ok())?;
        Some([libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&(system.f_type as libc::c_long)))
    }

    /// Where the maps are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier daemon left of this process: nothing, a map that is whole, or something that is of no use.
    pub(crate) fn find(&self, process: ProcessId) -> Option<Result<Left, String>> {
        let path = self.file(process);
        let file = match OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return Some(Err(format!("it cannot be opened: {error}"))),
        };
        Some(self.check().map_err(|error| error.to_string()).and_then(|()| {
            let metadata = file.metadata().map_err(|error| error.to_string())?;
            if !metadata.is_file()
                || metadata.uid() != user()
                || metadata.mode() & 0o777 != 0o600
                || metadata.nlink() != 1
            {
                return Err("it is not a file of this user alone (mode 0600)".to_owned());
            }
            if metadata.len() < SLOTS as u64 {
                return Err("it is cut off".to_owned());
            }
            open(path, file).map_err(|error| format!("it cannot be opened: {error}"))?.judge(process)
        }))
    }

    /// A file for a new map of this process, in place of any that is there.
    ///
    /// # Errors
    /// If there is no room, or the folder is not ours.
    pub(crate) fn create(&self, process: ProcessId) -> io::Result<Arc<Store>> {
        // The folder goes with the last file in it, perhaps between making it and making another file.
        let mut attempts = 0..8;
        loop {
            match self.try_create(process) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts.next().is_some() => {}
                other => return other,
            }
        }
    }

    fn try_create(&self, process: ProcessId) -> io::Result<Arc<Store>> {
        match fs::DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.check()?;
        let path = self.file(process);
        // Whole before anybody can find it; what a daemon that was killed left of one is in the way.
        let aside = self.path.join(format!(".{process}"));
        let _ = fs::remove_file(&aside);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&aside)?;
        file.set_len(SLOTS as u64)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, HEAD as u64)?;
        let store = open(path.clone(), file)?;
        store.begin();
        fs::rename(aside, path)?;
        Ok(store)
    }

    /// The processes of which there is a file.
    pub(crate) fn processes(&self) -> Vec<ProcessId> {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        files.filter_map(|file| process(file.file_name().to_str()?)).collect()
    }

    /// Removes what there is of a process.
    pub(crate) fn remove(&self, process: ProcessId) {
        remove(&self.file(process));
    }

    /// Removes the files of processes that are no more.
    pub(crate) fn sweep(&self) {
        let Ok(files) = fs::read_dir(&self.path) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let named = name.to_str().and_then(|name| process(name.trim_start_matches('.')));
            // What is not called like one is not ours to remove.
            if let Some(process) = named
                && identify(process.pid).ok() != Some(process)
            {
                tracing::debug!(path = %file.path().display(), "removing the map of a VM that has ended");
                let _ = fs::remove_file(file.path());
            }
        }
        let _ = fs::remove_dir(&self.path);
    }

    fn file(&self, process: ProcessId) -> PathBuf {
        self.path.join(process.to_string())
    }

    /// Whether nobody else can put files there.
    fn check(&self) -> io::Result<()> {
        let metadata = fs::symlink_metadata(&self.path)?;
        if metadata.is_dir() && metadata.uid() == user() && metadata.mode() & 0o022 == 0 {
            Ok(())
        } else {
            let path = self.path.display();
            Err(io::Error::other(format!("{path} is not a folder that only this user can write")))
        }
    }
}

/// Locks the file and maps its beginning.
fn open(path: PathBuf, file: File) -> io::Result<Arc<Store>> {
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    // In a damaged file it may be a hole.
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, HEAD as u64)?;
    let head = Area::map(&file, 0, HEAD)?;
    let tables = Area::map(&file, TABLE as u64, CHUNKS * 12)?;
    Ok(Arc::new(Store::new(path, file, head, tables)))
}

/// Removes a file, and the folder with the last one.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    if let Some(folder) = path.parent() {
        let _ = fs::remove_dir(folder);
    }
}

/// The process that a file is called by.
fn process(name: &str) -> Option<ProcessId> {
    let (pid, start_time) = name.strip_prefix("vm-")?.split_once('-')?;
    let process = ProcessId { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? };
    (process.to_string() == name).then_some(process)
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Names this boot of the host.
pub(super) fn boot() -> String {
    static BOOT: LazyLock<String> =
        LazyLock::new(|| fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default());
    BOOT.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_on_a_disk_is_told_from_one_in_memory() {
        let in_memory = |path: &str| MapFolder::new(path.into()).in_memory();
        assert_eq!(in_memory("/dev/shm"), Some(true));
        assert_eq!(in_memory("/dev/shm/memdex-not-made-yet/maps"), Some(true), "what is above it counts");
        assert_eq!(in_memory("/proc/maps"), Some(false));
    }
}
