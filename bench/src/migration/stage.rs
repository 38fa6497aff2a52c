//! Two hosts on this machine and a guest that memdex moves between them. Owns daemons, guests and everything that is done
//! before and after what is measured: booting, indexing, a waiting end, the proof that the guest lives.

use std::{
    fmt,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, Qemu, Scratch,
    daemon::Options as DaemonOptions,
    image::{self, QemuProgram, Workload},
    qemu::{Backend, Checks, Options},
    relay::Relay,
};
use memdex_wire::migration::{Migration, Outcome};
use serde_json::Value;

use super::{
    Cap, How, Run, milliseconds,
    pair::{BOOT, CHECK, MIB, now, settle, when},
};
use crate::daemon;

/// Longest wait for a daemon to find a VM, for its pages to settle, and for the VMM of a guest that has gone to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Part of a guest's pages that may be stale before it moves, one in so many: those it writes all the time always are.
const QUIET: u64 = 50;
/// For how long a guest that returns has run elsewhere.
const AWAY: Duration = Duration::from_secs(60);
/// Tries of a migration that is called off because the guest would stand still too long.
const TRIES: u32 = 3;

/// A host of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

impl Side {
    const BOTH: [Self; 2] = [Self::A, Self::B];

    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    const fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// What the destination has of the guest beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// Another guest of the same image is there, and has run.
    Sibling,
    /// The guest has been there, and has run elsewhere for a while since. What it left is kept.
    Returning,
    /// No VM runs there, and none ever did.
    Nothing,
    /// The same, and fewest bytes are asked for, not least time.
    NothingPacked,
}

impl Case {
    pub(crate) const ALL: [Self; 4] = [Self::Nothing, Self::NothingPacked, Self::Sibling, Self::Returning];
    /// Those with the settings that are there if nothing is said.
    pub(crate) const DEFAULT: [Self; 3] = [Self::Nothing, Self::Sibling, Self::Returning];

    /// Those with no other VM there.
    pub(crate) const ALONE: [Self; 2] = [Self::Nothing, Self::NothingPacked];

    /// Whether it differs from others under this cap: under one so low everything is compressed anyway.
    pub(crate) fn is_measured(self, cap: Cap) -> bool {
        self != Self::NothingPacked || cap == Cap::None
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sibling => f.write_str("memdex, sibling there"),
            Self::Returning => write!(f, "memdex, returns after {} s", AWAY.as_secs()),
            Self::Nothing => f.write_str("memdex, nothing in common"),
            Self::NothingPacked => f.write_str("memdex, nothing in common, --compression zstd"),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stage {
    guest: Qemu,
    name: String,
    at: Side,
    sibling: Option<Qemu>,
    daemons: Option<[Daemon; 2]>,
    qemu: QemuProgram,
    options: Options,
    checks: Checks,
    moves: u32,
    /// Last, so that it is dropped last: it looks whether anything is left.
    scratch: Scratch,
}

impl Stage {
    /// A Debian guest at host A, like that of the [pair](super::pair::Pair) but for its RAM, which is a file. With
    /// `sibling` another one of the same image is at host B, and has run there. They stand still until [`Self::begin`].
    pub(crate) fn debian(qemu: &QemuProgram, sibling: bool) -> Self {
        let scratch = Scratch::new("bench-stage");
        let options = options(qemu, &scratch, "guest", &Workload::default());
        let name = format!("{}-0", scratch.name(Side::A.letter()));
        let mut guest = Qemu::start(&scratch, &name, &options);
        let mut sibling = sibling.then(|| {
            let seed = Workload { seed: 2, ..Workload::default() };
            let name = format!("{}-sibling", scratch.name(Side::B.letter()));
            Qemu::start(&scratch, &name, &self::options(qemu, &scratch, "sibling", &seed))
        });
        for qemu in sibling.iter_mut().chain([&mut guest]) {
            qemu.wait_for_serial(image::READY, BOOT);
        }
        let checks = guest.check_ok(Checks::default());
        let (daemons, qemu, moves) = (None, qemu.clone(), 0);
        let mut stage =
            Self { guest, name, at: Side::A, sibling, daemons, qemu, options, checks, moves, scratch };
        stage.rest();
        stage
    }

    /// All guests stand still, nothing is indexed, and what was known is forgotten.
    pub(crate) fn rest(&mut self) {
        for mut daemon in self.daemons.take().into_iter().flatten() {
            daemon.stop();
            // Guests that are still there have their maps kept for the next daemon.
            let _ = std::fs::remove_dir_all(format!("{}.maps", daemon.socket().display()));
        }
        self.sibling.iter_mut().chain([&mut self.guest]).for_each(Qemu::pause);
    }

    /// All guests run, and daemons that know nothing from before begin to index them.
    pub(crate) fn begin(&mut self) {
        self.sibling.iter_mut().chain([&mut self.guest]).for_each(Qemu::resume);
        self.daemons = Some(Side::BOTH.map(|side| {
            let options = DaemonOptions {
                include: self.scratch.globs(&[side.letter()]),
                tcp: true,
                token_file: Some(self.scratch.path("token")),
                // A tmpfs, as /run is.
                socket: Some(self.scratch.shm(&format!("{}.sock", side.letter()))),
                arguments: ["--log", "info"].map(str::to_owned).to_vec(),
                ..DaemonOptions::default()
            };
            Daemon::start_with(&self.scratch, &format!("host-{}", side.letter()), &options)
        }));
    }

    fn daemon(&self, side: Side) -> &Daemon {
        &self.daemons.as_ref().expect("`begin` was called before anything moves")[side as usize]
    }

    /// Waits until what is known of every guest that runs is whole, and of today.
    fn indexed(&self) {
        let sibling = self.sibling.iter().map(|sibling| (Side::B, sibling.pid()));
        for (side, pid) in sibling.chain([(self.at, self.guest.pid())]) {
            let daemon = self.daemon(side);
            drop(daemon.wait_for_vm(pid, PATIENCE));
            daemon::indexed(daemon, pid);
            let begun = Instant::now();
            loop {
                let vm = daemon::vm(daemon, pid);
                if vm.as_ref().is_some_and(|vm| vm.pages.stale <= vm.pages.total / QUIET) {
                    break;
                }
                assert!(
                    begun.elapsed() < PATIENCE,
                    "the guest writes too much, its pages stay stale: {vm:?}"
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// The guest goes to the other host. What it says there of its memory is checked.
    ///
    /// # Panics
    /// If it does not arrive, or finds its memory changed.
    pub(crate) fn go(&mut self, case: Case, cap: Cap) -> Run {
        self.go_after(if case == Case::Returning { AWAY } else { Duration::ZERO }, case, cap)
    }

    /// The same after some time where it is.
    ///
    /// # Panics
    /// As [`Self::go`].
    pub(crate) fn go_after(&mut self, away: Duration, case: Case, cap: Cap) -> Run {
        std::thread::sleep(away);
        for called_off in 0..TRIES {
            if let Some(run) = self.try_to_go(case, cap) {
                return Run { called_off, ..run };
            }
        }
        panic!("{case}, cap {cap}: called off {TRIES} times");
    }

    /// None if the migration was called off because the guest would stand still too long.
    fn try_to_go(&mut self, case: Case, cap: Cap) -> Option<Run> {
        let to = self.at.other();
        self.moves += 1;
        let name = format!("{}-{}", self.scratch.name(to.letter()), self.moves);
        let ram = self.scratch.shm(&format!("ram{}", self.moves));
        let mut there = Qemu::start(&self.scratch, &name, &self.options.destination(Backend::File(ram)));
        drop(self.daemon(to).wait_for_vm(there.pid(), PATIENCE));
        self.indexed();
        // QEMU's own migration is measured without another guest that takes part of this machine's processors.
        self.sibling.iter_mut().for_each(Qemu::pause);
        let busy = settle();

        let port = self.daemon(to).port();
        let relay = Relay::to(([127, 0, 0, 1], port).into()).expect("a relay between the hosts");
        self.guest.qmp().take_events();
        let begun = now();
        let report = self.migrate(&name, &relay, case, cap);
        match report.outcome {
            Some(Outcome::Completed) => {}
            Some(Outcome::Aborted) => {
                self.sibling.iter_mut().for_each(Qemu::resume);
                return None;
            }
            outcome => panic!("the migration ended as {outcome:?}: {:?}", report.reason),
        }
        let stopped = when(&self.guest.qmp().last_events(), "STOP").expect("the source stops the guest");
        there.wait_for_status("running", PATIENCE);
        let resumed = when(&there.qmp().take_events(), "RESUME").expect("the destination resumes the guest");
        let run = Run {
            how: How::Memdex(case),
            qemu: self.qemu.version,
            cap,
            wire_bytes: relay.bytes(),
            total_ms: milliseconds(begun, resumed),
            blackout_ms: milliseconds(stopped, resumed),
            reported_ms: report.blackout_ms,
            called_off: 0,
            busy,
        };
        self.guest.wait_for_exit(PATIENCE);
        self.sibling.iter_mut().for_each(Qemu::resume);
        self.checks = there.check_all(self.checks);
        (self.guest, self.name, self.at) = (there, name, to);
        Some(run)
    }

    /// `memdex migrate`, through the relay, to its end; all that is known of it.
    fn migrate(&self, dest_vm: &str, relay: &Relay, case: Case, cap: Cap) -> Migration {
        let url = format!("tcp://{}", relay.address());
        let bandwidth = cap.bytes_per_second().to_string();
        let mut arguments = vec!["migrate", &self.name, "--to", &url, "--dest-vm", dest_vm, "-o", "json"];
        if cap != Cap::None {
            arguments.extend(["--max-bandwidth", &bandwidth]);
        }
        if case == Case::NothingPacked {
            arguments.extend(["--compression", "zstd"]);
        }
        let output = self.daemon(self.at).memdex(&arguments);
        let told: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let id = told["id"].as_str().expect("a migration has an id");
        let answer = self.daemon(self.at).get(&format!("/v1/migrations/{id}"));
        let report: Migration = serde_json::from_slice(&answer.body).expect("the contract's JSON");
        for line in &report.log {
            eprintln!("    {:>6} ms, {}: {}", line.at_ms, line.phase.name(), line.text);
        }
        let pages = &report.pages;
        eprintln!(
            "    {} rounds, {} zero, {} matched, {} sent",
            report.rounds, pages.zero, pages.matched, pages.sent
        );
        report
    }
}

fn options(qemu: &QemuProgram, scratch: &Scratch, name: &str, workload: &Workload) -> Options {
    let ram = Backend::File(scratch.shm(name));
    let disk = scratch.path(&format!("{name}-disk"));
    let options = Options::debian(MIB, ram, disk, workload, Some(&CHECK));
    Options { qemu: Some(qemu.clone()), ..options }
}
