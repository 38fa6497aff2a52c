//! Two hosts on this machine: two daemons, each of which sees only the VMs whose names begin as it was told.

use std::{path::PathBuf, process::Output, time::Duration};

use memdex_tests::{
    Daemon, Qemu, Scratch, daemon,
    image::{Check, QemuProgram, Workload},
    qemu::{Backend, Boot, Options},
};
use serde_json::Value;

/// Two daemons.
pub struct Hosts {
    pub a: Daemon,
    pub b: Daemon,
}

/// Settings of a daemon.
pub fn options(scratch: &Scratch, prefix: &str, more: &[&str]) -> daemon::Options {
    daemon::Options {
        include: scratch.globs(&[prefix]),
        tcp: true,
        token_file: Some(scratch.path("token")),
        arguments: more.iter().map(|argument| (*argument).to_owned()).collect(),
        ..daemon::Options::default()
    }
}

impl Hosts {
    /// Starts both: host `a` has the VMs called `a`, host `b` those called `b`.
    pub fn start(scratch: &Scratch) -> Self {
        let a = Daemon::start_with(scratch, "host-a", &options(scratch, "a", &[]));
        let b = Daemon::start_with(scratch, "host-b", &options(scratch, "b", &[]));
        Self { a, b }
    }
}

/// URL of a daemon's TCP listener.
pub fn tcp(daemon: &Daemon) -> String {
    format!("tcp://127.0.0.1:{}", daemon.port())
}

/// A tiny guest with its own check of `check.mib` MiB.
pub fn tiny(
    ram: PathBuf,
    mib: u64,
    workload: &Workload,
    check: &Check,
    qemu: Option<QemuProgram>,
) -> Options {
    Options { qemu, ..Options::linux(mib, Backend::File(ram), Boot::tiny(workload, Some(check))) }
}

/// Starts a guest and waits for its daemon to know it.
pub fn start(scratch: &Scratch, name: &str, options: &Options, daemon: &Daemon) -> Qemu {
    let qemu = Qemu::start(scratch, name, options);
    let _ = daemon.wait_for_vm(qemu.pid(), Duration::from_secs(10));
    qemu
}

/// `memdex migrate … -o json`: what it printed, parsed; and its exit code.
pub fn migrate(from: &Daemon, vm: &str, to: &str, dest_vm: &str, more: &[&str]) -> (Value, Option<i32>) {
    let mut arguments = vec!["migrate", vm, "--to", to, "--dest-vm", dest_vm, "-o", "json"];
    arguments.extend(more);
    let output = from.memdex(&arguments);
    (document(&output), output.status.code())
}

/// The JSON document that a command printed.
pub fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}
