//! What has to hold after a fault, whatever it was: the guest runs once and its memory is right, nothing is left over, the reason was said,
//! and the guest can move.

use std::{os::unix::fs::MetadataExt, time::Duration};

use memdex_tests::{Daemon, wait};
use serde_json::{Value, json};

use super::{Stage, Watched, shown};

/// Longest time until the guest runs again.
pub const RUNS_AGAIN: Duration = Duration::from_secs(15);
/// Longest time until nothing is left over: the destination waits ten seconds for last words.
const TIDY: Duration = Duration::from_secs(20);
/// Most memory that a destination may keep when what it received is thrown away.
const EMPTY: u64 = 1 << 20;

/// Where the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    Here,
    There,
}

impl Stage {
    /// Waits until the guest runs, and says where. Never does it in both places.
    pub fn runs(&mut self, waiting: &mut Watched, bound: Duration) -> Runs {
        let (runs, took) = wait::until("the guest to run in one place", bound, || {
            self.guest.never_at_once(waiting);
            match (self.guest.look(), waiting.look()) {
                (true, false) => Some(Runs::Here),
                (false, true) => Some(Runs::There),
                _ => None,
            }
        });
        eprintln!("  the guest runs {runs:?} after {took:?}");
        runs
    }

    /// Waits until both hosts know that the migration has ended, or nothing of it; returns what they know.
    pub fn ended(&self, id: &str) -> [Option<Value>; 2] {
        [&self.hosts[self.at], &self.hosts[1 - self.at]].map(|host| {
            let bound = Duration::from_secs(60);
            wait::until("the migration to end", bound, || match shown(host, id) {
                Some(document) if document["outcome"].is_null() => None,
                document => Some(document),
            })
            .0
        })
    }

    /// Everything else, when the guest is known to run in one place and both daemons live. The guest moves on.
    pub fn judge(&mut self, mut waiting: Watched, id: &str) {
        let documents = self.ended(id);
        for document in documents.iter().flatten() {
            reasonable(document);
        }
        let runs = self.runs(&mut waiting, RUNS_AGAIN);
        self.tidy();
        let outcome = documents[0].as_ref().map(|document| document["outcome"].clone());
        match runs {
            Runs::Here => {
                assert_ne!(outcome, Some(json!("completed")), "the guest runs at the source: {documents:?}");
                discarded(&mut waiting);
            }
            Runs::There => {
                assert!(
                    outcome.is_none_or(|outcome| outcome == "completed"),
                    "the guest runs there: {documents:?}"
                );
                wait::until("the QEMU that is left to end", TIDY, || self.guest.is_gone().then_some(()));
            }
        }
        self.guest.never_at_once(&mut waiting);
        if runs == Runs::There {
            self.moved_to(waiting);
        }
        untouched(&mut self.guest);
        self.checks = self.guest.qemu.check_ok(self.checks);
        self.move_on();
    }

    /// Nothing that belongs to a migration is left.
    pub fn tidy(&self) {
        let left = || {
            let guards = self.scratch.processes_with("guard");
            let journals: Vec<_> = self.hosts.iter().flat_map(undecided).collect();
            (guards, journals)
        };
        let begun = std::time::Instant::now();
        loop {
            let (guards, journals) = left();
            if guards.is_empty() && journals.is_empty() {
                return;
            }
            assert!(begun.elapsed() < TIDY, "guards {guards:?} and journals {journals:?} are left over");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The folder of a daemon's journal of migrations.
pub fn journal(daemon: &Daemon) -> std::path::PathBuf {
    let mut name = daemon.socket().as_os_str().to_owned();
    name.push(".migrations");
    name.into()
}

/// Migrations in a daemon's journal that have not ended. The end of one is remembered there if its source may still ask.
fn undecided(daemon: &Daemon) -> Vec<String> {
    let files = std::fs::read_dir(journal(daemon)).into_iter().flatten().flatten();
    let entries = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    entries.filter(|entry| !entry.contains("\"completed\"") && !entry.contains("\"given_up\"")).collect()
}

/// An ended migration has a reason in words.
fn reasonable(document: &Value) {
    let reason = document["reason"].as_str().unwrap_or_default();
    eprintln!("  {} {}: {reason}", document["direction"], document["outcome"]);
    assert!(reason.len() > 12 && reason.contains(' '), "{document}");
    assert_eq!(document["progress"]["throttle_percent"], 0);
}

/// A VM to which nothing came keeps no memory of it, and never runs.
pub fn discarded(waiting: &mut Watched) {
    if waiting.is_gone() {
        return;
    }
    untouched(waiting);
    let status = waiting.qemu.status();
    assert!(status == "inmigrate", "the discarded VM is {status}");
    let file = waiting.qemu.ram_file().expect("it has a RAM file").to_owned();
    wait::until("the memory of the discarded VM to be given back", TIDY, || {
        let kept = std::fs::metadata(&file).expect("its RAM file").blocks() * 512;
        (kept <= EMPTY).then_some(())
    });
}

/// What was switched on in a QEMU is off again: in these all is as QEMU has it by itself.
fn untouched(watched: &mut Watched) {
    let all = watched.qemu.qmp().run("query-migrate-capabilities", &json!({}));
    for name in ["x-ignore-shared", "late-block-activate"] {
        let found = all.as_array().into_iter().flatten().find(|one| one["capability"] == name);
        assert_eq!(found.expect("QEMU has it")["state"], false, "{} is left with {name}", watched.name);
    }
}
