//! One test's files and processes. Owns a folder, a prefix of file names in /dev/shm and a mark in the environment of
//! every process that is started; removes what carries them, also when the test panics, and fails a test that
//! would have left something over.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Environment variable that marks the processes of a test.
const MARK: &str = "MEMDEX_TEST_MARK";
/// How long processes that were told to end may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a test owns. Declare it first: it must be dropped last.
#[derive(Debug)]
pub struct Scratch {
    mark: String,
    /// Ends the names of this test's VMs.
    tag: String,
    folder: tempfile::TempDir,
}

impl Scratch {
    /// A new, empty scratch space. `name` appears in file names; a few letters will do.
    ///
    /// # Panics
    /// If no folder can be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mark = format!("memdex-test-{process}-{count}-{name}");
        let folder =
            tempfile::Builder::new().prefix(&mark).tempdir().expect("a temporary folder can be made");
        // An ordinary user's QEMU must get at its sockets here.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("our own folder's mode can be set");
        Self { mark, tag: format!("{count:x}-{process:x}"), folder }
    }

    /// A name for a VM that no other test gives: `prefix` (at most four letters) and a tag.
    #[must_use]
    pub fn name(&self, prefix: &str) -> String {
        format!("{prefix}-{}", self.tag)
    }

    /// Globs for the VMs with these prefixes: by their own name, or by program and pid.
    #[must_use]
    pub fn globs(&self, prefixes: &[&str]) -> Vec<String> {
        let globs = prefixes.iter().map(|prefix| self.name(prefix));
        globs.flat_map(|name| [format!("{name}-*"), name]).collect()
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in /dev/shm that no other test has.
    #[must_use]
    pub fn shm(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/dev/shm/{}-{name}", self.mark))
    }

    /// A command whose process belongs to this test.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, &self.mark);
        command
    }

    /// Living processes of this test whose first argument is this: `guard` for those that `memdexd` leaves beside a VM.
    #[must_use]
    pub fn processes_with(&self, argument: &str) -> Vec<u32> {
        let first = |pid: &u32| {
            let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command_line.split(|byte| *byte == 0).nth(1).is_some_and(|word| word == argument.as_bytes())
        };
        self.processes().into_iter().map(|(pid, _)| pid).filter(first).collect()
    }

    /// Living processes that carry the mark.
    fn processes(&self) -> Vec<(u32, String)> {
        let wanted = format!("{MARK}={}", self.mark);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != std::process::id())
            .filter(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
            })
            .map(|pid| (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()))
            .collect()
    }

    /// Files in /dev/shm that carry the mark.
    fn shm_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let ours = |path: &PathBuf| {
            path.file_name().is_some_and(|name| {
                name.to_string_lossy().strip_prefix(&self.mark).is_some_and(|rest| rest.starts_with('-'))
            })
        };
        entries.map(|entry| entry.path()).filter(ours).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let begun = Instant::now();
        let mut processes = self.processes();
        while !processes.is_empty() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
            processes = self.processes();
        }
        for (pid, _) in &processes {
            if let Some(pid) = Pid::from_raw(*pid as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let files = self.shm_files();
        for file in &files {
            // The maps that a daemon leaves for the next one are a folder.
            let _ = if file.is_dir() { fs::remove_dir_all(file) } else { fs::remove_file(file) };
        }
        if !std::thread::panicking() {
            assert!(processes.is_empty(), "processes were left running: {processes:?}");
            assert!(files.is_empty(), "files were left in /dev/shm: {files:?}");
        }
    }
}
