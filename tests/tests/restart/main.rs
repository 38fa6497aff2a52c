//! Protects the promise that a new daemon picks up where the old one was, however that ended: what was not written meanwhile is not hashed again,
//! what was written or thrown away meanwhile is stale, and nothing is ever shown that is not so. And that `memdexd --detach` leaves a VMM as it was found.

mod attaching;
mod detach;
mod gap;
mod kills;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, Scratch, Tiny,
    address_space::mappings,
    contract::Vm,
    daemon::{Options, binary},
    oracle, tiny, wait,
};

const APPEAR: Duration = Duration::from_secs(5);
/// A figure of one VM.
fn figure(daemon: &Daemon, name: &str, vm: &Vm) -> u64 {
    let text = String::from_utf8(daemon.get("/metrics").body).expect("text");
    let start = format!("memdex_vm_{name}{{vm=\"{}\"", vm.id);
    let line =
        text.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no {start} in {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number") as u64
}

fn hashed(daemon: &Daemon, vm: &Vm) -> u64 {
    figure(daemon, "pages_read_total", vm)
}

/// Waits until nothing is stale, but for what is unsettled because the daemon came late. The guest has to be paused.
fn settled(daemon: &Daemon, guest: &Tiny) -> Vm {
    // What a machine is too busy for within five seconds (a thread of the VMM makes a call) is tried again after one more, then two, four, and so on.
    wait::until("all pages to be known", Duration::from_secs(40), || {
        let vm = daemon.vm_of(guest.pid())?;
        let known = vm.pages.stale == vm.pages.unsettled && vm.tracking == "exact";
        known.then_some(vm)
    })
    .0
}

/// Holds the map against the memory.
fn judge(daemon: &Daemon, vm: &Vm, context: &str) {
    if vm.pages.unsettled == 0 {
        oracle::compare(daemon, vm).expect_exact(context);
    } else {
        oracle::compare_claims(daemon, vm).expect_exact(context);
    }
}

/// The file that the daemon keeps a VM's map in.
fn map_file(daemon: &Daemon, vm: &Vm) -> PathBuf {
    PathBuf::from(format!("{}.maps", daemon.socket().display())).join(&vm.id)
}

fn userfaultfds(pid: u32) -> usize {
    open_files(pid).values().filter(|target| target.contains("userfaultfd")).count()
}

/// The open files of a process, by number.
fn open_files(pid: u32) -> BTreeMap<String, String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("root may look");
    files
        .flatten()
        .filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            Some((file.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
        })
        .collect()
}
