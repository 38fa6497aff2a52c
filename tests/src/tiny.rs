//! Drives `tiny-vmm`, the KVM guest that writes the pages it is told to. Owns the process and its pipes; the commands
//! are described in the program itself.

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Write},
    path::PathBuf,
    process::{ChildStdin, ChildStdout, Stdio},
};

use crate::{Scratch, daemon::binary, process::Process};

/// What a tiny guest is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of slot 0.
    pub mib: u64,
    /// What its RAM is.
    pub ram: Ram,
    /// KVM's own dirty log: `none`, `bitmap` or `ring`.
    pub log: &'static str,
    /// Run as this user.
    pub uid: Option<u32>,
    /// Further arguments.
    pub arguments: Vec<String>,
}

/// What a tiny guest's RAM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ram {
    /// A memfd.
    Memfd,
    /// Private anonymous memory.
    Anonymous,
    /// A memfd of huge pages; the host has to have some.
    Hugetlb,
    /// A file at this path.
    File(PathBuf),
}

impl Default for Options {
    fn default() -> Self {
        Self { mib: 16, ram: Ram::Memfd, log: "none", uid: None, arguments: Vec::new() }
    }
}

/// A running tiny guest.
#[derive(Debug)]
pub struct Tiny {
    process: Process,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    /// Files to remove: RAM files and the program's own name.
    files: Vec<PathBuf>,
}

impl Tiny {
    /// Starts a guest with memfd RAM. The VM is called `NAME-PID`: see [`Self::start_with`].
    #[must_use]
    pub fn start(scratch: &Scratch, name: &str) -> Self {
        Self::start_with(scratch, name, &Options::default())
    }

    /// Starts a guest. memdex calls it `NAME-PID`, since the program runs under that name; at most 15 letters.
    ///
    /// # Panics
    /// If it does not start; KVM is needed.
    #[must_use]
    pub fn start_with(scratch: &Scratch, name: &str, options: &Options) -> Self {
        assert!(name.len() <= 15, "the kernel keeps 15 letters of a program's name");
        let folder = tempfile::tempdir_in(scratch.folder()).expect("a folder can be made").keep();
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("our own folder's mode can be set");
        let program = folder.join(name);
        let original = binary("tiny-vmm");
        if fs::hard_link(&original, &program).is_err() {
            fs::copy(&original, &program).expect("tiny-vmm can be copied");
        }
        let mut files = vec![program.clone()];
        let mut command = scratch.command(&program);
        command.args(["--mib", &options.mib.to_string(), "--log", options.log, "--ram"]);
        match &options.ram {
            Ram::Memfd => command.arg("memfd"),
            Ram::Anonymous => command.arg("anon"),
            Ram::Hugetlb => command.arg("hugetlb"),
            Ram::File(path) => {
                fs::write(path, "").expect("the RAM file can be made");
                if let Some(uid) = options.uid {
                    std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("root can give files away");
                }
                files.push(path.clone());
                command.arg(path)
            }
        };
        if let Some(uid) = options.uid {
            command.args(["--uid", &uid.to_string()]);
        }
        command.args(&options.arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::launch(name, &mut command, files)
    }

    fn launch(name: &str, command: &mut std::process::Command, files: Vec<PathBuf>) -> Self {
        let mut process = Process::start(name, command);
        let input = process.child().stdin.take();
        let output = process.child().stdout.take().expect("stdout is a pipe");
        let mut tiny = Self { process, input, output: BufReader::new(output).lines(), files };
        let ready = tiny.line();
        assert_eq!(ready.as_deref(), Some("ready"), "{name} did not start; is /dev/kvm there?");
        tiny
    }

    /// Starts a process of its own that maps a guest's RAM file (its slot 0, a memfd) when it is told to, and writes it: `map`,
    /// `poke PAGE COUNT SEED`, `unmap`.
    ///
    /// # Panics
    /// If the guest has no such memfd, or the process does not start.
    #[must_use]
    pub fn writer_to(scratch: &Scratch, guest: &Self) -> Self {
        let folder = format!("/proc/{}/fd", guest.pid());
        let descriptors = fs::read_dir(&folder).expect("the guest runs").flatten();
        let of_ram = |target: PathBuf| target.to_string_lossy().starts_with("/memfd:tiny-ram-0");
        let ram = descriptors.map(|entry| entry.path()).find(|path| fs::read_link(path).is_ok_and(of_ram));
        let mut command = scratch.command(binary("tiny-vmm"));
        command.arg("--write-to").arg(ram.expect("the guest has a memfd"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::launch("writer", &mut command, Vec::new())
    }

    /// Process id of the VMM.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends a command that must succeed; returns the answer's text.
    ///
    /// # Panics
    /// If the guest refuses or is gone.
    pub fn run(&mut self, command: &str) -> String {
        let input = self.input.as_mut().expect("the guest has not been killed");
        writeln!(input, "{command}").unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let answer = self.line().unwrap_or_else(|| panic!("the guest ended at {command:?}"));
        let text = answer.strip_prefix("ok").unwrap_or_else(|| panic!("{answer}"));
        text.trim().to_owned()
    }

    /// The guest writes `count` pages from guest page `first`; page i gets pattern `seed + i`.
    pub fn write(&mut self, first: u64, count: u64, seed: u32) {
        self.run(&format!("write {first} {count} {seed}"));
    }

    /// Whether the VMM runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.input = None;
        self.process.kill();
    }

    fn line(&mut self) -> Option<String> {
        self.output.next().and_then(Result::ok)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        self.kill();
        for file in &self.files {
            let _ = fs::remove_file(file);
            for id in 1..8 {
                let _ = fs::remove_file(format!("{}.{id}", file.display()));
            }
        }
    }
}
