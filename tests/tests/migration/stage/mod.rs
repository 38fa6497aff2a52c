//! A guest, two hosts, and something that goes wrong while the guest moves.
//!
//! Owns what has to hold afterwards, whatever it was ([`judge`]), and when it goes wrong ([`moment`]). A guest that is well stays for the next
//! fault: it moves on to the other host by a migration in which nothing goes wrong, which is itself part of what has to hold.

pub mod judge;
pub mod moment;
pub mod watched;

use std::{fs::File, path::PathBuf, process::Stdio, time::Duration};

use memdex_tests::{
    Daemon, Scratch, daemon,
    image::{self, Check, Workload},
    process::Process,
    qemu::{Backend, Checks, Options},
    wait,
};
use serde_json::Value;

use crate::hosts::{migrate, options, tcp, tiny};
use moment::Chance;
use watched::Watched;

/// A guest that checks itself and writes at a moderate pace.
pub const CHECK: Check = Check { mib: 24, rate: 300, hot: 4 };
/// What else it does.
pub const WORKLOAD: Workload = Workload { rate: 10, files: 16, file_kib: 32, seed: 5 };
/// Memory of the guest.
const MIB: u64 = 128;
/// Longest boot.
const BOOT: Duration = Duration::from_secs(120);

/// See the module.
pub struct Stage {
    pub hosts: [Daemon; 2],
    pub guest: Watched,
    pub checks: Checks,
    pub chance: Chance,
    pub options: Options,
    /// Which host the guest is on.
    pub at: usize,
    moves: usize,
    pub scratch: Scratch,
}

/// A migration that somebody has begun.
pub struct Moving {
    /// The `memdex migrate` that began it.
    pub command: Process,
    pub id: String,
    output: PathBuf,
}

impl Stage {
    /// Boots a guest at the first host.
    pub fn new(name: &str, check: &Check) -> Self {
        Self::with(name, check, "")
    }

    /// The same with lines of the section `[migration]` of both daemons' configuration.
    pub fn with(name: &str, check: &Check, settings: &str) -> Self {
        let scratch = Scratch::new(name);
        let config = scratch.path("config.toml");
        // What a VM leaves behind when it moves away would make the way back too short to go wrong.
        std::fs::write(&config, format!("[migration]\nkeep_mib = 0\n{settings}\n")).expect("a configuration");
        let config = config.display().to_string();
        let host = |prefix: &str| -> daemon::Options { options(&scratch, prefix, &["--config", &config]) };
        let hosts = [
            Daemon::start_with(&scratch, "host-a", &host("a")),
            Daemon::start_with(&scratch, "host-b", &host("b")),
        ];
        let options = tiny(scratch.shm("ram0"), MIB, &WORKLOAD, check, None);
        let guest = boot(&scratch, &hosts[0], &options, 0);
        let mut stage = Self {
            hosts,
            guest,
            checks: Checks::default(),
            chance: Chance::new(),
            options,
            at: 0,
            moves: 0,
            scratch,
        };
        stage.checks = stage.guest.qemu.check_ok(Checks::default());
        stage
    }

    /// Another guest in place of one that is gone, at the first host.
    pub fn boot_again(&mut self) {
        self.moves += 1;
        let options = Options {
            backend: Backend::File(self.scratch.shm(&format!("ram{}", self.moves))),
            ..self.options.clone()
        };
        self.at = 0;
        self.guest = boot(&self.scratch, &self.hosts[0], &options, self.moves);
        self.checks = self.guest.qemu.check_ok(Checks::default());
    }

    /// The host that the guest is on.
    pub fn here(&self) -> &Daemon {
        &self.hosts[self.at]
    }

    /// The other one.
    pub fn there(&self) -> &Daemon {
        &self.hosts[1 - self.at]
    }

    /// A fresh VM that waits at the other host.
    pub fn waiting(&mut self) -> Watched {
        self.moves += 1;
        let ram = Backend::File(self.scratch.shm(&format!("ram{}", self.moves)));
        self.waiting_with(ram)
    }

    /// The same with memory of this kind.
    pub fn waiting_with(&mut self, ram: Backend) -> Watched {
        self.moves += 1;
        let name = format!("{}-{}", self.scratch.name(["a", "b"][1 - self.at]), self.moves);
        let waiting = Watched::start(&self.scratch, &name, &self.options.destination(ram));
        let _ = self.there().wait_for_vm(waiting.qemu.pid(), Duration::from_secs(10));
        waiting
    }

    /// Begins a migration of the guest to a VM that waits at the other host, which is called `to`.
    pub fn begin(&mut self, waiting: &Watched, to: &str, more: &[&str]) -> Moving {
        let output = self.scratch.path(&format!("migrate-{}.json", self.moves));
        let mut arguments =
            vec!["migrate", &self.guest.name, "--to", to, "--dest-vm", &waiting.name, "-o", "json"];
        arguments.extend(more);
        let before = ids(self.here());
        let mut command = self.here().memdex_command(&self.scratch, &arguments);
        command.stdin(Stdio::null());
        command.stdout(File::create(&output).expect("a file can be made"));
        command.stderr(File::create(output.with_extension("err")).expect("a file can be made"));
        let mut command = Process::start("memdex migrate", &mut command);
        let (id, _) = wait::until("the migration to begin", Duration::from_secs(10), || {
            let id = ids(self.here()).into_iter().find(|id| !before.contains(id));
            assert!(
                id.is_some() || command.is_running(),
                "it did not begin: {}",
                std::fs::read_to_string(output.with_extension("err")).unwrap_or_default()
            );
            id
        });
        Moving { command, id, output }
    }

    /// A migration in which nothing goes wrong; the guest is at the other host afterwards.
    pub fn move_on(&mut self) {
        let waiting = self.waiting();
        let to = tcp(self.there());
        let (report, code) =
            migrate(self.here(), &self.guest.name, &to, &waiting.name, &["--on-no-converge", "stop"]);
        assert_eq!(code, Some(0), "a migration after the fault does not work: {report}");
        let entry = judge::journal(self.there()).join(report["id"].as_str().expect("its id"));
        wait::until("the destination to forget what its source has heard", Duration::from_secs(5), || {
            (!entry.exists()).then_some(())
        });
        self.moved_to(waiting);
        assert_eq!(self.guest.qemu.status(), "running");
    }

    /// The guest is where `waiting` was.
    pub fn moved_to(&mut self, waiting: Watched) {
        self.guest = waiting;
        self.at = 1 - self.at;
    }
}

impl Moving {
    /// What the command printed at its end, and its exit code.
    pub fn end(&mut self, bound: Duration) -> (Value, Option<i32>) {
        let (status, _) = self.command.wait(bound);
        let text = std::fs::read(&self.output).unwrap_or_default();
        let document = serde_json::from_slice(&text).unwrap_or_else(|error| {
            let words = std::fs::read_to_string(self.output.with_extension("err")).unwrap_or_default();
            panic!("{error}: {}{words}", String::from_utf8_lossy(&text))
        });
        (document, status.code())
    }
}

/// A migration as a daemon shows it; nothing if it does not answer or know it.
pub fn shown(daemon: &Daemon, id: &str) -> Option<Value> {
    let path = format!("/v1/migrations/{id}");
    let answer = memdex_tests::http::unix(daemon.socket(), "GET", &path, &[]).ok()?;
    (answer.status == 200).then(|| answer.json())
}

fn ids(daemon: &Daemon) -> Vec<String> {
    let all = daemon.get("/v1/migrations").json();
    let ids = all.as_array().into_iter().flatten().map(|migration| migration["id"].as_str());
    ids.flatten().map(str::to_owned).collect()
}

fn boot(scratch: &Scratch, host: &Daemon, options: &Options, number: usize) -> Watched {
    let mut guest = Watched::start(scratch, &format!("{}-{number}", scratch.name("a")), options);
    guest.qemu.wait_for_serial(image::READY, BOOT);
    let _ = host.wait_for_vm(guest.qemu.pid(), Duration::from_secs(10));
    guest
}
