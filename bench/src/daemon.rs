//! The daemon as the bench sees it.

use std::{fs, time::Duration};

use memdex_tests::{
    Scratch,
    daemon::{Daemon, Options},
    wait,
};
use memdex_wire::vm::VmInfo;

/// Threads that hash, in the daemon and in every baseline.
pub(crate) const HASH_THREADS: usize = 1;

/// Starts a daemon that indexes the VMM with this pid.
pub(crate) fn start(scratch: &Scratch, name: &str, include: &str) -> Daemon {
    start_with(scratch, name, include, &[])
}

/// The same with further arguments.
pub(crate) fn start_with(scratch: &Scratch, name: &str, include: &str, more: &[String]) -> Daemon {
    start_for(scratch, name, vec![include.to_owned()], more)
}

/// The same for several VMs.
pub(crate) fn start_for(scratch: &Scratch, name: &str, include: Vec<String>, more: &[String]) -> Daemon {
    let arguments = ["--hash-threads".to_owned(), HASH_THREADS.to_string()];
    let options = Options {
        include,
        tcp: true,
        token_file: Some(scratch.path("token")),
        arguments: [&arguments, more].concat(),
        ..Options::default()
    };
    Daemon::start_with(scratch, name, &options)
}

/// What the daemon says of the VM with this pid.
pub(crate) fn vm(daemon: &Daemon, pid: u32) -> Option<VmInfo> {
    let vms: Vec<VmInfo> =
        serde_json::from_slice(&daemon.succeed(&["-o", "json", "vms"])).expect("the contract's JSON");
    vms.into_iter().find(|vm| vm.pid == pid)
}

/// Waits until every page has been looked at once.
pub(crate) fn indexed(daemon: &Daemon, pid: u32) -> VmInfo {
    let (vm, _) = wait::until("the first index", Duration::from_secs(120), || {
        vm(daemon, pid).filter(|vm| vm.indexed.total > 0 && vm.indexed.done == vm.indexed.total)
    });
    vm
}

/// Waits until no page is stale, of a VM that is left alone.
pub(crate) fn settled(daemon: &Daemon, pid: u32, bound: Duration) {
    wait::until("every page to be current", bound, || {
        daemon.vm_of(pid).filter(|vm| vm.pages.stale == 0).map(drop)
    });
}

/// The sum of a figure of `/metrics`.
pub(crate) fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = String::from_utf8_lossy(&daemon.get("/metrics").body).into_owned();
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    samples.sum()
}

/// Resident memory of a process in bytes: everything, shared pages too.
pub(crate) fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says VmRSS");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024.0
}
