//! What a destination has decided, written down before it acts, so that a daemon that was killed knows it when it is back.
//!
//! Owns one small file for each incoming migration, from its beginning to its end, in a folder beside the daemon's socket (a tmpfs normally: when the host goes
//! down its VMs do too, and nothing is left to be decided). The file is replaced whole, never changed.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::guard::Step;
use crate::vm::descriptor::ProcessId;

/// Where an incoming migration is, as far as it matters to who comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Memory is coming; the waiting VM has taken nothing in by itself.
    Receiving,
    /// QEMU reads device state, or has read it. The guest does not run.
    Loading,
    /// The guest is to run here, and nowhere else.
    Committed,
    /// It could not be let run: the VMM is being ended, and only when it has is anybody told that the guest is not here.
    Ending,
    /// It is over: the guest is here. Kept until the source has heard of it.
    Completed,
    /// It is over: the guest is not here and never will be. Kept until the source has heard of it.
    GivenUp,
}

/// An entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The migration.
    pub id: String,
    /// Name of the VM.
    pub name: String,
    /// The waiting VMM: pid and start time.
    pub process: (u32, u64),
    /// Its monitor's socket.
    pub monitor: PathBuf,
    /// What has been decided.
    pub decision: Decision,
    /// Whether the guest shall run, or stay paused as it was.
    pub run: bool,
    /// What gives the VMM back the settings it was found with.
    #[serde(default)]
    pub undo: Vec<Step>,
}

impl Entry {
    /// The waiting VMM.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        ProcessId { pid: self.process.0, start_time: self.process.1 }
    }
}

/// The folder of the entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// A journal in `folder`, which is made when it is needed.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Writes an entry; when this returns it will be found by whoever comes after.
    ///
    /// # Errors
    /// If it cannot be written: then nothing may be done that depends on it.
    pub fn write(&self, entry: &Entry) -> io::Result<()> {
        // The folder goes with the last entry, perhaps between making it and making another one.
        let mut attempts = 0..8;
        loop {
            match self.try_write(entry) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts.next().is_some() => {}
                other => return other,
            }
        }
    }

    fn try_write(&self, entry: &Entry) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.check()?;
        let aside = self.folder.join(format!(".{}", entry.id));
        let _ = fs::remove_file(&aside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(entry)?)?;
        fs::rename(aside, self.path(&entry.id))
    }

    /// Whether nobody else can put entries there: what they say is done to VMs.
    fn check(&self) -> io::Result<()> {
        let metadata = fs::symlink_metadata(&self.folder)?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if metadata.is_dir() && ours && metadata.mode() & 0o022 == 0 {
            return Ok(());
        }
        let folder = self.folder.display();
        Err(io::Error::other(format!("{folder} is not a folder that only this user can write")))
    }

    /// Removes an entry, and the folder with the last one.
    pub fn remove(&self, id: &str) {
        let _ = fs::remove_file(self.path(id));
        let _ = fs::remove_dir(&self.folder);
    }

    /// Whether there is an entry.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.path(id).exists()
    }

    /// All entries. What cannot be read is said in the log and left alone.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        match self.check() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::error!(%error, "the journal of migrations is not believed");
                return Vec::new();
            }
        }
        let Ok(files) = fs::read_dir(&self.folder) else { return Vec::new() };
        let named =
            |path: &Path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."));
        let paths = files.flatten().map(|file| file.path()).filter(|path| named(path));
        let entry = |path: PathBuf| match fs::read(&path)
            .map_err(io::Error::other)
            .and_then(|text| Ok(serde_json::from_slice(&text)?))
        {
            Ok(entry) => Some(entry),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "an entry of the journal of migrations cannot be read");
                None
            }
        };
        paths.filter_map(entry).collect()
    }

    fn path(&self, id: &str) -> PathBuf {
        // Ids are hex, checked where they come in.
        self.folder.join(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_and_nothing_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(folder.path().join("x"));
        assert!(journal.entries().is_empty());
        let mut entry = Entry {
            id: "ab12".to_owned(),
            name: "vm".to_owned(),
            process: (1, 2),
            monitor: "/m".into(),
            decision: Decision::Receiving,
            run: true,
            undo: vec![Step::new("cont")],
        };
        journal.write(&entry).unwrap();
        entry.decision = Decision::Committed;
        journal.write(&entry).unwrap();
        fs::write(folder.path().join("x/broken"), "{").unwrap();
        assert_eq!(journal.entries(), [entry]);
        fs::remove_file(folder.path().join("x/broken")).unwrap();
        journal.remove("ab12");
        assert!(!folder.path().join("x").exists());
    }

    #[test]
    fn what_others_can_write_is_not_believed() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(folder.path().join("x"));
        let entry = Entry {
            id: "ab12".to_owned(),
            name: "vm".to_owned(),
            process: (1, 2),
            monitor: "/m".into(),
            decision: Decision::Committed,
            run: true,
            undo: Vec::new(),
        };
        journal.write(&entry).unwrap();
        // A link in the place of what is written aside is replaced, not followed.
        let victim = folder.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, folder.path().join("x/.ab12")).unwrap();
        journal.write(&entry).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert_eq!(journal.entries().len(), 1);
        fs::set_permissions(folder.path().join("x"), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(journal.entries(), []);
        assert!(journal.write(&entry).unwrap_err().to_string().contains("only this user"));
    }
}
