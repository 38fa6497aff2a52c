//! A real `memdexd` and the `memdex` command beside it. Owns the daemon's process, socket, token and log; prints the
//! log's end when a test fails.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    Scratch,
    contract::{Diff, Page, Vm},
    http,
    process::Process,
    wait,
};

/// How long a daemon may take until it answers.
const STARTUP: Duration = Duration::from_secs(15);
/// The contract's bound for a graceful stop.
const STOP: Duration = Duration::from_secs(5);
/// Lines of the log shown when a test fails.
const LOG_TAIL: usize = 60;

/// What a daemon is started with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Globs for `--include`; by default those of all VMs of this test.
    pub include: Vec<String>,
    /// Also listen on a free TCP port of loopback.
    pub tcp: bool,
    /// Token file; by default one of its own.
    pub token_file: Option<PathBuf>,
    /// Its Unix socket, and beside it what it writes down while it runs; by default in the scratch folder.
    pub socket: Option<PathBuf>,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Folders that are empty as it sees them.
    pub hidden: Vec<PathBuf>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    socket: PathBuf,
    port: Option<u16>,
    token_file: PathBuf,
    log: PathBuf,
    name: String,
    options: Options,
}

impl Daemon {
    /// Starts a daemon that indexes all VMs of this test, and waits until it is ready.
    #[must_use]
    pub fn start(scratch: &Scratch) -> Self {
        Self::start_with(scratch, "memdexd", &Options::default())
    }

    /// Starts a daemon and waits until it is ready.
    ///
    /// # Panics
    /// If it ends or is not ready in time.
    #[must_use]
    pub fn start_with(scratch: &Scratch, name: &str, options: &Options) -> Self {
        let mut daemon = Self::launch(scratch, name, options);
        daemon.wait_until_ready();
        daemon
    }

    /// Starts the program anew once it has ended, as a service manager would: same sockets, token and arguments.
    ///
    /// # Panics
    /// If it is not ready in time.
    pub fn restart(&mut self, scratch: &Scratch) {
        self.process.kill();
        self.process =
            spawn(scratch, &self.name, &self.options, &self.socket, self.port, &self.token_file, &self.log);
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        wait::until(&format!("{} to be ready", self.name), STARTUP, || {
            assert!(self.process.is_running(), "{} ended at start", self.name);
            let answer = http::unix(&self.socket, "GET", "/readyz", &[]).ok()?;
            (answer.status == 200).then_some(())
        });
    }

    /// Starts a daemon and does not wait; for daemons that are expected to refuse to run.
    ///
    /// # Panics
    /// If the program can't be started.
    #[must_use]
    pub fn launch(scratch: &Scratch, name: &str, options: &Options) -> Self {
        let socket = options.socket.clone().unwrap_or_else(|| scratch.path(&format!("{name}.sock")));
        let log = scratch.path(&format!("{name}.log"));
        let token_file = options.token_file.clone().unwrap_or_else(|| scratch.path(&format!("{name}.token")));
        let port = options.tcp.then(free_port);
        let process = spawn(scratch, name, options, &socket, port, &token_file, &log);
        Self { process, socket, port, token_file, log, name: name.to_owned(), options: options.clone() }
    }

    /// Its process, for tests that interfere with it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// URL of its Unix socket.
    #[must_use]
    pub fn url(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// URL of its TCP listener.
    ///
    /// # Panics
    /// If it was started without one.
    #[must_use]
    pub fn tcp_url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port())
    }

    /// Port of its TCP listener.
    ///
    /// # Panics
    /// If it was started without one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.expect("the daemon was started with `tcp`")
    }

    /// Its Unix socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its token file.
    #[must_use]
    pub fn token_file(&self) -> &Path {
        &self.token_file
    }

    /// Its log's file.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Asks over the Unix socket.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn get(&self, path: &str) -> http::Answer {
        http::unix(&self.socket, "GET", path, &[]).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// `memdex --host THIS …` as a command that has not been started; it belongs to the test of `scratch`.
    #[must_use]
    pub fn memdex_command(&self, scratch: &Scratch, arguments: &[&str]) -> std::process::Command {
        let mut command = scratch.command(binary("memdex"));
        command.args(["--host", &self.url()]).args(arguments).env("MEMDEX_TOKEN_FILE", &self.token_file);
        command.env_remove("MEMDEX_HOST");
        command
    }

    /// Runs `memdex --host THIS …` to its end.
    ///
    /// # Panics
    /// If the program can't be started.
    #[must_use]
    pub fn memdex(&self, arguments: &[&str]) -> Output {
        memdex(&self.url(), &self.token_file, arguments)
    }

    /// As [`Self::memdex`], for a command that must succeed; returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn succeed(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.memdex(arguments);
        assert!(
            output.status.success(),
            "memdex {arguments:?} failed with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        output.stdout
    }

    /// `memdex vms -o json`
    ///
    /// # Panics
    /// If the command fails or prints something else.
    #[must_use]
    pub fn vms(&self) -> Vec<Vm> {
        parse("vms", &self.succeed(&["vms", "-o", "json"]))
    }

    /// The VM of a VMM process, if the daemon shows it. Over HTTP, since tests ask often.
    ///
    /// # Panics
    /// If the daemon answers with something else.
    #[must_use]
    pub fn vm_of(&self, pid: u32) -> Option<Vm> {
        let all: Vec<Vm> = parse("GET /v1/vms", &self.get("/v1/vms").body);
        all.into_iter().find(|vm| vm.pid == pid)
    }

    /// Waits until the daemon shows the VM of a process; returns it and how long that took.
    #[must_use]
    pub fn wait_for_vm(&self, pid: u32, bound: Duration) -> (Vm, Duration) {
        wait::until(&format!("the VM of process {pid} to appear"), bound, || self.vm_of(pid))
    }

    /// `memdex pages VM -o jsonl`
    ///
    /// # Panics
    /// If the command fails or prints something else.
    #[must_use]
    pub fn pages(&self, vm: &str) -> Vec<Page> {
        lines(&self.succeed(&["pages", vm, "-o", "jsonl"]))
    }

    /// The same; nothing if the VM was laid out anew meanwhile, or is about to be found again.
    ///
    /// # Panics
    /// If the command fails for another reason.
    #[must_use]
    pub fn pages_if_still(&self, vm: &str) -> Option<Vec<Page>> {
        let output = self.memdex(&["pages", vm, "-o", "jsonl"]);
        if output.status.success() {
            return Some(lines(&output.stdout));
        }
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(words.contains("memory layout changed"), "{words}");
        None
    }

    /// `memdex sync VM`: every page current; returns the generation.
    ///
    /// # Panics
    /// If the command fails.
    pub fn sync(&self, vm: &str) -> String {
        String::from_utf8_lossy(&self.succeed(&["sync", vm, "--timeout", "20s"])).trim().to_owned()
    }

    /// `memdex diff VM --to URL -o json`
    ///
    /// # Panics
    /// If the command fails or prints something else.
    #[must_use]
    pub fn diff(&self, vm: &str, to: &str) -> Diff {
        parse("diff", &self.succeed(&["diff", vm, "--to", to, "-o", "json"]))
    }

    /// `memdex verify VM`: succeeds only without a mismatch.
    ///
    /// # Panics
    /// If the command fails.
    pub fn verify(&self, vm: &str) {
        drop(self.succeed(&["verify", vm]));
    }

    /// SIGTERM; returns how long the daemon took to end.
    ///
    /// # Panics
    /// If it takes longer than the contract allows or reports failure.
    pub fn stop(&mut self) -> Duration {
        self.process.signal(Signal::TERM);
        let (status, took) = self.process.wait(STOP);
        assert!(status.success(), "the daemon ended with {status} on SIGTERM");
        took
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(Some(status)) = self.process.child().try_wait()
        {
            eprintln!("--- {} had ended: {status}", self.name);
        }
        self.process.kill();
        if std::thread::panicking() {
            let log = self.log();
            // Requests crowd out what matters.
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("DEBUG request")).collect();
            eprintln!("--- end of {}:", self.log.display());
            for line in &lines[lines.len().saturating_sub(LOG_TAIL)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The program itself.
fn spawn(
    scratch: &Scratch,
    name: &str,
    options: &Options,
    socket: &Path,
    port: Option<u16>,
    token_file: &Path,
    log: &Path,
) -> Process {
    let mut command = if options.hidden.is_empty() {
        scratch.command(binary("memdexd"))
    } else {
        without(scratch, &options.hidden)
    };
    command.args(["--listen", &format!("unix:{}", socket.display())]);
    if let Some(port) = port {
        command.args(["--listen", &format!("tcp://127.0.0.1:{port}")]);
    }
    let include = if options.include.is_empty() { scratch.globs(&["*"]) } else { options.include.clone() };
    for glob in include {
        command.args(["--include", &glob]);
    }
    command.args(&options.arguments);
    command.env("MEMDEX_TOKEN_FILE", token_file);
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "info,indexer=debug");
    }
    let file = File::options().create(true).append(true).open(log).expect("a log file can be made");
    command.stdin(std::process::Stdio::null());
    command.stdout(file.try_clone().expect("a descriptor can be copied")).stderr(file);
    Process::start(name, &mut command)
}

fn lines(text: &[u8]) -> Vec<Page> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| parse("a line of pages", line))
        .collect()
}

/// The daemon in a mount namespace of its own, in which these folders are empty. The process is the daemon's in the end.
fn without(scratch: &Scratch, hidden: &[PathBuf]) -> std::process::Command {
    let mut command = scratch.command("unshare");
    let mounts = hidden.iter().map(|folder| format!("mount -t tmpfs none '{}' && ", folder.display()));
    let script = mounts.collect::<String>() + "exec \"$0\" \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(binary("memdexd"));
    command
}

/// Runs `memdex --host URL …` to its end.
///
/// # Panics
/// If the program can't be started.
#[must_use]
pub fn memdex(url: &str, token_file: &Path, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(binary("memdex"));
    command.args(["--host", url]).args(arguments).env("MEMDEX_TOKEN_FILE", token_file);
    command.env_remove("MEMDEX_HOST").output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A port nobody listens on.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a listener has an address").port()
}

/// A program of this workspace: in `$MEMDEX_BIN_DIR`, or beside the test (`target/debug`).
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its program");
    let beside = test.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let given = std::env::var_os("MEMDEX_BIN_DIR").map(|folder| PathBuf::from(folder).join(name));
    given.into_iter().chain(beside).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{name} is not built; run `cargo build --workspace` first, or set MEMDEX_BIN_DIR")
    })
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, text: &[u8]) -> T {
    serde_json::from_slice(text)
        .unwrap_or_else(|error| panic!("{what}: {error} in {}", String::from_utf8_lossy(text)))
}
