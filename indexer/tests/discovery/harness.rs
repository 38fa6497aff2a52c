//! Real VMMs for the tests: QEMU processes with a QMP socket, and helper processes that are this test program
//! started again. Everything ends and is removed when its owner is dropped, also on a failed test.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use indexer::{
    units::{Gpa, Hva},
    vm::{
        Discovery, KvmVm, NameFilter,
        descriptor::{Memslot, VmDescriptor},
    },
};
use serde_json::{Value, json};

/// The pause between two sweeps of the daemon.
pub(crate) const TICK: Duration = Duration::from_millis(300);
/// How soon a change must be noticed.
pub(crate) const NOTICED: Duration = Duration::from_secs(1);
/// How long a real program may take to get ready on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A process that is killed, by its own pid, and waited for.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self { child: command.spawn().expect("the program starts") }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGKILL without waiting: it stays as a zombie.
    pub(crate) fn kill_only(&mut self) {
        let _ = self.child.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file that is removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(folder: &str, name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(Path::new(folder).join(format!("memdex-discovery-{}-{number}-{name}", std::process::id())))
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("the name is plain")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A real QEMU, paused at its first instruction.
pub(crate) struct Qemu {
    pub(crate) process: Process,
    qmp: BufReader<UnixStream>,
    _socket: Scratch,
}

impl Qemu {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let socket = Scratch::new("/tmp", "qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-S", "-display", "none", "-nodefaults", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", socket.path())).args(arguments);
        let process = Process::start(command.stdin(Stdio::null()));
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&socket.0) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "QEMU's QMP socket: {error}"),
            }
            sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        let mut qemu = Self { process, qmp: BufReader::new(stream), _socket: socket };
        let mut greeting = String::new();
        qemu.qmp.read_line(&mut greeting).expect("QEMU greets");
        qemu.execute("qmp_capabilities", &json!({}));
        qemu
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.qmp.get_mut(), "{request}").expect("QEMU listens");
        loop {
            let mut line = String::new();
            assert!(self.qmp.read_line(&mut line).expect("QEMU answers") > 0, "QEMU is gone");
            let mut answer: Value = serde_json::from_str(&line).expect("QMP is JSON");
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }

    /// Where QEMU itself says that a guest physical address stands in its memory.
    pub(crate) fn host_address(&mut self, gpa: u64) -> u64 {
        let line = format!("gpa2hva {gpa:#x}");
        let answer = self.execute("human-monitor-command", &json!({ "command-line": line }));
        let text = answer.as_str().expect("text").trim();
        let address = text.rsplit("0x").next().expect("an address");
        u64::from_str_radix(address, 16).unwrap_or_else(|_| panic!("gpa2hva says {text:?}"))
    }
}

/// This test program again, as a process that does what the helper test `role` says, and tells on its output.
pub(crate) struct Helper {
    pub(crate) process: Process,
    pub(crate) said: Vec<String>,
    _stdin: ChildStdin,
    _stdout: BufReader<ChildStdout>,
}

/// Set in a helper process: what it shall do.
pub(crate) const ROLE: &str = "MEMDEX_TEST_ROLE";

impl Helper {
    pub(crate) fn start(role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(["--exact", "helper::role", "--ignored", "--nocapture"]).env(ROLE, role);
        let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let stdin = process.child.stdin.take().expect("piped");
        let mut said = Vec::new();
        let mut stdout = BufReader::new(process.child.stdout.take().expect("piped"));
        let mut line = String::new();
        while stdout.read_line(&mut line).expect("the helper speaks UTF-8") > 0 {
            // The test runner prints its own words before it, on the same line.
            let words = line.trim_end().split_once("helper: ").map(|(_, words)| words.to_owned());
            line.clear();
            match words {
                Some(words) if words == "ready" => {
                    return Self { process, said, _stdin: stdin, _stdout: stdout };
                }
                words => said.extend(words),
            }
        }
        panic!("the helper {role:?} ended before it was ready");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The KVM VMs that the helper says it has, as the kernel would show them.
    pub(crate) fn kvm_vms(&self) -> Vec<KvmVm> {
        let mut vms: Vec<KvmVm> = Vec::new();
        for line in &self.said {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| u64::from_str_radix(words[at], 16).expect("a hexadecimal number");
            match words[0] {
                "vm" => vms.push(KvmVm {
                    pid: self.pid(),
                    fd: i32::try_from(number(1)).expect("small"),
                    slots: vec![],
                }),
                "slot" => vms.last_mut().expect("a VM first").slots.push(Memslot {
                    id: u32::try_from(number(1)).expect("small"),
                    gpa: Gpa(number(2)),
                    len: number(3),
                    hva: Hva(number(4)),
                    flags: u32::try_from(number(5)).expect("small"),
                }),
                _ => {}
            }
        }
        vms
    }

    /// The number that the helper said under this name.
    pub(crate) fn number(&self, name: &str) -> u64 {
        let word = self.said.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        u64::from_str_radix(word.expect("the helper said it"), 16).expect("a hexadecimal number")
    }
}

/// A discovery, swept as the daemon does it.
pub(crate) struct Watch {
    pub(crate) discovery: Discovery,
    pub(crate) kvm: Option<Vec<KvmVm>>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { discovery: Discovery::new(NameFilter::all()), kvm: None }
    }

    pub(crate) fn sweep(&mut self) -> Vec<Arc<VmDescriptor>> {
        self.discovery.sweep(self.kvm.as_deref())
    }

    pub(crate) fn look(&mut self, pid: u32) -> Option<Arc<VmDescriptor>> {
        self.sweep().into_iter().find(|vm| vm.process.pid == pid)
    }

    /// Sweeps until the VM is as wanted, which must be within `limit`.
    pub(crate) fn until(
        &mut self,
        pid: u32,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&VmDescriptor) -> bool,
    ) -> Arc<VmDescriptor> {
        let start = Instant::now();
        loop {
            // Before the sweep: a slow sweep that begins in time is in time.
            let late = start.elapsed() > limit;
            let vm = self.look(pid);
            if let Some(vm) = &vm
                && wanted(vm)
            {
                return vm.clone();
            }
            assert!(!late, "{what}: not within {limit:?}; pid {pid} is {vm:#?}");
            sleep(TICK);
        }
    }

    /// Sweeps until the VM is gone, which must be within `limit`.
    pub(crate) fn until_gone(&mut self, pid: u32, limit: Duration) {
        let start = Instant::now();
        while let Some(vm) = self.look(pid) {
            assert!(start.elapsed() <= limit, "still there after {limit:?}: {vm:#?}");
            sleep(TICK);
        }
    }
}

/// The whole content of a pipe or file, for messages.
pub(crate) fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    if let Err(error) = from.read_to_string(&mut text) {
        let _ = write!(text, "({error})");
    }
    text
}
