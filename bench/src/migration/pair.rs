//! A guest and the QEMU it moves to next. Owns both, and everything that is done before and after what is measured: booting,
//! a waiting end, the proof that the guest lives.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use memdex_tests::{
    Qemu, Scratch,
    image::{self, Check, QemuProgram, QemuVersion, Workload},
    qemu::{Accelerator, Backend, Checks, Options},
    qmp::Event,
};

use crate::machine::{cpus, idle};

/// Size of the guest.
pub(crate) const MIB: u64 = 1024;
pub(crate) const BOOT: Duration = Duration::from_secs(300);
/// How long the guest is left alone before it moves, so that what the last thing did to it has settled.
const SETTLE: Duration = Duration::from_secs(3);
/// How long is waited at most for whatever else this machine does, and which part of it has to be idle.
const BUSY: Duration = Duration::from_secs(20);
const QUIET: f64 = 0.6;
/// Next to nothing beside what else the guest does (half of its pages are random, which no compression helps): it is there to prove that the guest lives, and is the same.
pub(crate) const CHECK: Check = Check { mib: 1, rate: 20, hot: 0 };

/// A guest that runs, and what is needed to move it.
#[derive(Debug)]
pub(crate) struct Pair {
    /// Where the guest runs.
    source: Qemu,
    options: Options,
    version: QemuVersion,
    checks: Checks,
    moves: u32,
    /// Last, so that it is dropped last: it looks whether anything is left.
    scratch: Scratch,
}

impl Pair {
    /// A Debian guest with redis and nginx under light load, booted. Its RAM is QEMU's own memory, which it always sends.
    pub(crate) fn debian(qemu: &QemuProgram) -> Self {
        let scratch = Scratch::new("bench-move");
        let disk = scratch.path("disk");
        let mut options = Options::debian(MIB, Backend::Plain, disk, &Workload::default(), Some(&CHECK));
        let version = qemu.version;
        options.qemu = Some(qemu.clone());
        let mut source = Qemu::start(&scratch, &scratch.name("p0"), &options);
        source.wait_for_serial(image::READY, BOOT);
        let checks = source.check_ok(Checks::default());
        Self { source, options, version, checks, moves: 0, scratch }
    }

    /// Which QEMU runs it.
    pub(crate) const fn version(&self) -> QemuVersion {
        self.version
    }

    /// What is moved, in words.
    pub(crate) fn about(&self) -> String {
        let accelerator = match self.options.accelerator {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "TCG",
        };
        let load = Workload::default().rate;
        let checked = CHECK.rate;
        format!(
            "Debian guest of {MIB} MiB with redis and nginx, {load} writes to redis and {checked} to its own check a second, {accelerator}, QEMU {}",
            self.version
        )
    }

    /// The guest stands still until [`Self::begin`].
    pub(crate) fn rest(&mut self) {
        self.source.pause();
    }

    /// The guest runs.
    pub(crate) fn begin(&mut self) {
        self.source.resume();
    }

    /// Both ends: the guest, left alone for a while, and a new QEMU that waits for it. And whether this machine is busy.
    pub(crate) fn ends(&mut self) -> (&mut Qemu, Qemu, bool) {
        self.moves += 1;
        let name = self.scratch.name(&format!("p{}", self.moves));
        let there = self.options.destination(self.options.backend.clone());
        let destination = Qemu::start(&self.scratch, &name, &there);
        let busy = settle();
        (&mut self.source, destination, busy)
    }

    /// The guest has moved: the source ends, and what was the destination is the source from now on.
    ///
    /// # Panics
    /// If the guest does not live there, or finds its memory changed.
    pub(crate) fn moved(&mut self, mut destination: Qemu) {
        self.checks = destination.check_all(self.checks);
        self.source = destination;
    }
}

/// Leaves the guest alone for a while, and longer if something else keeps this machine busy. Whether it still does.
pub(crate) fn settle() -> bool {
    // A QEMU that takes over a disk waits until all that was written to it is on the disk: what was written at boot is not to count.
    rustix::fs::sync();
    std::thread::sleep(SETTLE);
    let begun = Instant::now();
    while begun.elapsed() < BUSY {
        let before = idle();
        std::thread::sleep(Duration::from_secs(1));
        if idle() - before >= cpus() * QUIET {
            return false;
        }
    }
    true
}

/// Time since 1970, as QEMU's events have it.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970")
}

/// When QEMU reported this last, among these events.
pub(crate) fn when(events: &[Event], name: &str) -> Option<Duration> {
    events.iter().rfind(|event| event.name == name).map(|event| event.at)
}
