//! The two hosts: which guests each has, their daemons, and what is asked of them. Owns every process and RAM file of
//! the demo; dropping it ends and removes all of them.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, Scratch,
    contract::Counts,
    daemon, http, image,
    image::Workload,
    qemu::{Accelerator, Backend},
};
use serde::Deserialize;

use crate::{
    arguments::Arguments,
    guest::{self, Guest},
    metrics::Metrics,
    stage::{Failure, Stage},
};

/// Debian's size is what a small server has; the tiny guest needs no more to run.
const DEBIAN_MIB: u64 = 1024;
const TINY_MIB: u64 = 128;
/// A slow machine emulating three Debian guests needs this much patience.
const BOOT: Duration = Duration::from_secs(300);
/// Loading the eBPF programs takes most of it.
const STARTUP: Duration = Duration::from_secs(60);

/// One of the two hosts.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) guests: Vec<Guest>,
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) hosts: [Host; 2],
    pub(crate) mib: u64,
    pub(crate) fast: bool,
    token: PathBuf,
    /// Last, so that it is dropped last: it looks whether anything is left.
    scratch: Scratch,
}

/// What the demo shows of a VM, from `GET /v1/vms`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct VmView {
    pub(crate) id: String,
    pub(crate) pid: u32,
    pub(crate) tracking: String,
    #[serde(default)]
    pub(crate) advisory_reasons: Vec<String>,
    pub(crate) witnesses: Vec<Witness>,
    pub(crate) pages: Counts,
    pub(crate) indexed: Indexed,
    pub(crate) missed_by_ebpf: u64,
    pub(crate) mismatches: u64,
}

/// Who watches for writes.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Witness {
    pub(crate) name: String,
    pub(crate) status: String,
}

/// How far the first pass is.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Indexed {
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) elapsed_ms: u64,
}

impl World {
    /// Two hosts without anything on them.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let scratch = Scratch::new("demo");
        let host = |name| Host { name, daemon: None, guests: Vec::new() };
        Self {
            hosts: [host("north"), host("south")],
            mib: if arguments.fast { TINY_MIB } else { DEBIAN_MIB },
            fast: arguments.fast,
            token: scratch.path("token"),
            scratch,
        }
    }

    /// Starts a guest on a host; it boots on its own from there. One that is to move gets a disk of its own.
    pub(crate) fn start_guest(
        &mut self,
        host: usize,
        name: &'static str,
        moves: bool,
        workload: Workload,
    ) -> Result<(), Failure> {
        let disk = moves.then(|| self.scratch.path(&format!("{name}.disk")));
        let options = guest::options(self.fast, self.mib, self.scratch.shm(name), disk, workload)?;
        self.hosts[host].guests.push(Guest::start(&self.scratch, name, name.to_owned(), options));
        Ok(())
    }

    /// Where a guest of one host can move to on another one: the same machine, waiting. Returns when that host knows it.
    pub(crate) fn start_waiting(&self, stage: &Stage, guest: &Guest, host: usize) -> Result<Guest, Failure> {
        let host = &self.hosts[host];
        let vm = format!("{}{}", guest.name, suffix(host.name));
        let options = guest.options.destination(Backend::File(self.scratch.shm(&vm)));
        let waiting = Guest::start(&self.scratch, guest.name, vm, options);
        let begun = Instant::now();
        while host.vm(&waiting).is_err() {
            stage.pause(Duration::from_millis(20))?;
            if begun.elapsed() > STARTUP {
                return Err(Failure::Failed(format!("{} does not find the VM that waits there", host.name)));
            }
        }
        Ok(waiting)
    }

    /// Waits until the services of every guest run; calls `look` again and again meanwhile.
    pub(crate) fn wait_for_guests(
        &mut self,
        stage: &mut Stage,
        mut look: impl FnMut(&mut Stage, &[Host], Duration),
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            stage.pause(Duration::from_millis(100))?;
            let mut waiting = 0;
            for guest in self.hosts.iter_mut().flat_map(|host| &mut host.guests) {
                if guest.booted.is_none() && guest.qemu.serial().contains(image::READY) {
                    guest.booted = Some(begun.elapsed());
                }
                if !guest.qemu.is_running() {
                    return Err(Failure::Failed(format!(
                        "QEMU of {} has ended: {}",
                        guest.name,
                        guest.qemu.serial()
                    )));
                }
                waiting += usize::from(guest.booted.is_none());
            }
            look(stage, &self.hosts, begun.elapsed());
            if waiting == 0 {
                return Ok(());
            }
            if begun.elapsed() > BOOT {
                return Err(Failure::Failed(format!(
                    "{waiting} guests have not booted within {} s",
                    BOOT.as_secs()
                )));
            }
        }
    }

    /// Starts the daemon of a host. It is given the ids of the host's own VMs and the names of those that may come, so
    /// that other VMs of this machine, and those of the other host, are left alone.
    pub(crate) fn start_daemon(&mut self, stage: &Stage, host: usize) -> Result<(), Failure> {
        let guests = self.hosts[host].guests.iter();
        let own = guests.map(|guest| format!("vm-{}-*", guest.qemu.pid()));
        let options = daemon::Options {
            include: own.chain([format!("*{}", suffix(self.hosts[host].name))]).collect(),
            tcp: true,
            token_file: Some(self.token.clone()),
            ..daemon::Options::default()
        };
        let name = self.hosts[host].name;
        let daemon = self.hosts[host].daemon.insert(Daemon::launch(&self.scratch, name, &options));
        let begun = Instant::now();
        while !http::unix(daemon.socket(), "GET", "/healthz", &[]).is_ok_and(|answer| answer.status == 200) {
            stage.pause(Duration::from_millis(5))?;
            if !daemon.process().is_running() || begun.elapsed() > STARTUP {
                return Err(Failure::Failed(format!("memdexd of {name} does not run: {}", daemon.log())));
            }
        }
        Ok(())
    }

    /// What a VM's VMM is told apart by in words: the accelerator QEMU uses here.
    pub(crate) fn accelerator() -> &'static str {
        match Accelerator::for_guests() {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "emulation, since this machine has no VT-x or AMD-V",
        }
    }
}

impl Host {
    /// Its daemon.
    ///
    /// # Panics
    /// Before the daemon is started.
    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("scenes after the second have a daemon")
    }

    /// What the daemon says of its VMs.
    pub(crate) fn vms(&self) -> Result<Vec<VmView>, Failure> {
        let answer = self.daemon().get("/v1/vms");
        serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::Failed(format!("{} gives no list of its VMs: {error}", self.name)))
    }

    /// What the daemon says of a guest's VM.
    pub(crate) fn vm(&self, guest: &Guest) -> Result<VmView, Failure> {
        let vm = self.vms()?.into_iter().find(|vm| vm.pid == guest.qemu.pid());
        vm.ok_or_else(|| Failure::Failed(format!("{} does not show {}", self.name, guest.name)))
    }

    /// Runs a `memdex` command on this host, shows it with what it prints.
    pub(crate) fn show(&self, stage: &mut Stage, arguments: &[&str]) -> Result<(), Failure> {
        let output = self.daemon().memdex(arguments);
        stage.check()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let talk = String::from_utf8_lossy(&output.stderr);
        stage.command(self.name, &format!("memdex {}", arguments.join(" ")), &format!("{talk}{text}"));
        if output.status.success() {
            return Ok(());
        }
        Err(Failure::Failed(format!("`memdex {}` ended with {}", arguments.join(" "), output.status)))
    }

    /// Figures of `GET /metrics`.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics(String::from_utf8_lossy(&self.daemon().get("/metrics").body).into_owned())
    }
}

/// Ends the names of VMs that come to a host from the other one. On this one machine they must not be those of VMs that
/// are here already, nor those of another demo.
fn suffix(host: &str) -> String {
    format!("-{host}-{}", std::process::id())
}
