//! What a migration asks of a QEMU, in the field's words. Owns names and arguments of QMP commands, and what differs between versions.
//!
//! RAM is ours to move: with the capability `x-ignore-shared` QEMU leaves out memory that is a shared file. Since 8.1 (commit "exec/memory:
//! Introduce RAM_NAMED_FILE flag") that file has to have a name, so a memfd is sent by QEMU itself.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    guard::Step,
    qmp::{Qmp, QmpError},
};
use crate::vm::{
    descriptor::ProcessId,
    monitors::{as_seen_by, qmp_sockets},
};

/// Time from one look at QEMU's state to the next, while something is awaited.
const LOOK: Duration = Duration::from_millis(2);
/// How long QEMU may take to end a migration of its own that was called off.
pub const CANCELLED: Duration = Duration::from_secs(5);
/// Name under which QEMU keeps the descriptor that carries its device state.
const DESCRIPTOR: &str = "memdex";
/// Capability: memory in shared files is left out.
const IGNORE_SHARED: &str = "x-ignore-shared";
/// Capability: a destination locks its disks only when the guest is let run.
const LATE_ACTIVATE: &str = "late-block-activate";

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64, pub u64, pub u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The first that can leave out shared memory (`x-ignore-shared`).
    pub const LEAST: Self = Self(4, 0, 0);
    /// The first that leaves it out only if its file has a name.
    pub const NAMED_FILES: Self = Self(8, 1, 0);
}

/// A QEMU that can be told what to do.
#[derive(Debug)]
pub struct Monitor {
    qmp: Qmp,
    path: PathBuf,
}

impl Monitor {
    /// Connects to the monitor of a process: at `given` (as the process sees it), else at the first socket on its command line that answers.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub async fn open(process: ProcessId, given: Option<&Path>) -> Result<Self, String> {
        let sockets = match given {
            Some(path) => vec![as_seen_by(process, path)],
            None => qmp_sockets(process),
        };
        let mut last = "its command line names no QMP socket: start it with -qmp unix:PATH,server=on,wait=off, or name the socket with --qmp (at the destination --dest-qmp)".to_owned();
        for path in sockets {
            match Qmp::connect(&path, process.pid).await {
                Ok(qmp) => return Ok(Self { qmp, path }),
                Err(error) => last = format!("{}: {error}", path.display()),
            }
        }
        Err(last)
    }

    /// Connects to a socket whose path can be opened from here.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub async fn open_at(path: &Path, process: ProcessId) -> Result<Self, String> {
        let qmp =
            Qmp::connect(path, process.pid).await.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { qmp, path: path.to_owned() })
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the connection, for who has to go on with it if we end.
    ///
    /// # Errors
    /// If there is no room for one.
    pub fn share(&self) -> std::io::Result<OwnedFd> {
        self.qmp.share()
    }

    async fn tell(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp.execute(command, arguments).await
    }

    /// Its version.
    ///
    /// # Errors
    /// See [`QmpError`]; so it is with everything here.
    pub async fn version(&mut self) -> Result<Version, QmpError> {
        let answer = self.tell("query-version", json!({})).await?;
        let part = |name: &str| answer["qemu"][name].as_u64().unwrap_or(0);
        Ok(Version(part("major"), part("minor"), part("micro")))
    }

    /// Its run state, such as `running`, `paused` or `inmigrate`.
    pub async fn status(&mut self) -> Result<String, QmpError> {
        let answer = self.tell("query-status", json!({})).await?;
        Ok(migrate_client::printable(answer["status"].as_str().unwrap_or("unknown")))
    }

    /// Lets the guest run.
    pub async fn cont(&mut self) -> Result<(), QmpError> {
        self.tell("cont", json!({})).await.map(drop)
    }

    /// Stops the guest. QEMU drains its I/O first, so that nothing writes its memory when this returns.
    pub async fn stop(&mut self) -> Result<(), QmpError> {
        self.tell("stop", json!({})).await.map(drop)
    }

    /// Ends QEMU.
    pub async fn quit(&mut self) -> Result<(), QmpError> {
        self.tell("quit", json!({})).await.map(drop)
    }

    /// Whether a capability of QEMU's migration is on; `None` if it has no such capability.
    pub async fn capability(&mut self, name: &str) -> Result<Option<bool>, QmpError> {
        let answer = self.tell("query-migrate-capabilities", json!({})).await?;
        let found = answer.as_array().into_iter().flatten().find(|entry| entry["capability"] == name);
        Ok(found.and_then(|entry| entry["state"].as_bool()))
    }

    /// Switches shared memory out of QEMU's own migration, or in again.
    pub async fn ignore_shared(&mut self, on: bool) -> Result<(), QmpError> {
        let (command, arguments) = ignore_shared(on);
        self.tell(command, arguments).await.map(drop)
    }

    /// Switches shared memory as it was before, once QEMU's own migration, just called off, has really ended: until then it refuses.
    pub async fn restore_ignore_shared(&mut self, on: bool) -> Result<(), QmpError> {
        let deadline = Instant::now() + CANCELLED;
        loop {
            match self.ignore_shared(on).await {
                Err(QmpError::Refused { .. }) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                told => return told,
            }
        }
    }

    /// What a destination sets: shared memory is left out, and disks are locked only when the guest is let run, so that until then
    /// the source can go back to them.
    pub async fn set_up_destination(&mut self) -> Result<(), QmpError> {
        self.ignore_shared(true).await?;
        // Nice to have: without it a source that goes back waits for our end.
        let _ = self.set(LATE_ACTIVATE, true).await;
        // A guest that was told to stop before it has come does not begin to run by itself when it has.
        self.stop().await
    }

    /// What takes back the settings that a migration changes here, as they are now.
    pub async fn settings_to_undo(&mut self) -> Result<Vec<Step>, QmpError> {
        let mut undo = Vec::new();
        for name in [IGNORE_SHARED, LATE_ACTIVATE] {
            if let Some(state) = self.capability(name).await? {
                undo.push(Step::with(capability(name, state)));
            }
        }
        Ok(undo)
    }

    /// Does what a guard would do.
    pub async fn tell_step(&mut self, step: &Step) -> Result<(), QmpError> {
        self.tell(&step.command, step.arguments.clone()).await.map(drop)
    }

    async fn set(&mut self, name: &str, on: bool) -> Result<(), QmpError> {
        let (command, arguments) = capability(name, on);
        self.tell(command, arguments).await.map(drop)
    }

    /// Memory backends by id: their QOM type and, for files, where they are.
    pub async fn memory_backends(&mut self) -> Result<Vec<MemoryBackend>, QmpError> {
        let answer = self.tell("query-memdev", json!({})).await?;
        let mut all = Vec::new();
        for device in answer.as_array().into_iter().flatten() {
            let id = device["id"].as_str().unwrap_or_default().to_owned();
            let path = format!("/objects/{id}");
            let kind = self.tell("qom-get", json!({"path": path, "property": "type"})).await;
            let file = self.tell("qom-get", json!({"path": path, "property": "mem-path"})).await;
            let text = |value: Result<Value, QmpError>| {
                value.ok().and_then(|value| Some(value.as_str()?.to_owned()))
            };
            all.push(MemoryBackend {
                share: device["share"] == true,
                kind: text(kind).unwrap_or_default(),
                file: text(file).map(PathBuf::from),
                id: migrate_client::printable(&id),
            });
        }
        Ok(all)
    }

    /// Bytes of guest memory, as QEMU counts them.
    pub async fn memory_bytes(&mut self) -> Result<u64, QmpError> {
        let answer = self.tell("query-memory-size-summary", json!({})).await?;
        let part = |name: &str| answer[name].as_u64().unwrap_or(0);
        Ok(part("base-memory") + part("plugged-memory"))
    }

    /// Why QEMU says that it cannot migrate; empty if it can.
    pub async fn blockers(&mut self) -> Result<Vec<String>, QmpError> {
        let answer = self.tell("query-migrate", json!({})).await?;
        let reasons = answer["blocked-reasons"].as_array().into_iter().flatten();
        Ok(reasons.filter_map(Value::as_str).map(migrate_client::printable).collect())
    }

    /// Where QEMU's own migration is, and its words if it has failed; an empty state if there was none.
    pub async fn migration(&mut self) -> Result<(String, Option<String>), QmpError> {
        let answer = self.tell("query-migrate", json!({})).await?;
        let text = |name: &str| answer[name].as_str().map(migrate_client::printable);
        Ok((text("status").unwrap_or_default(), text("error-desc")))
    }

    /// Calls QEMU's own migration off; nothing happens if there is none.
    pub async fn cancel(&mut self) -> Result<(), QmpError> {
        self.tell("migrate_cancel", json!({})).await.map(drop)
    }

    /// Begins to write the device state to `descriptor`.
    pub async fn send_state(&mut self, descriptor: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.qmp.execute_with("getfd", json!({"fdname": DESCRIPTOR}), descriptor).await?;
        self.tell("migrate", json!({"uri": format!("fd:{DESCRIPTOR}")})).await.map(drop)
    }

    /// Begins to read the device state from `descriptor`.
    pub async fn receive_state(&mut self, descriptor: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.qmp.execute_with("getfd", json!({"fdname": DESCRIPTOR}), descriptor.as_fd()).await?;
        self.tell("migrate-incoming", json!({"uri": format!("fd:{DESCRIPTOR}")})).await.map(drop)
    }

    /// Waits until QEMU's own migration is complete.
    ///
    /// # Errors
    /// A sentence, if it fails or takes too long.
    pub async fn migration_complete(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            match self.migration().await.map_err(|error| error.to_string())? {
                (status, _) if status == "completed" => return Ok(()),
                (status, why) if status == "failed" || status == "cancelled" => {
                    let why = why.unwrap_or_else(|| "it does not say why; its standard error may".to_owned());
                    return Err(format!("QEMU's migration of the device state is {status}: {why}"));
                }
                (status, _) if Instant::now() >= deadline => {
                    return Err(format!(
                        "QEMU's migration of the device state is not done in time ({status})"
                    ));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// The command that switches shared memory out of QEMU's own migration, or in again.
#[must_use]
pub fn ignore_shared(on: bool) -> (&'static str, Value) {
    capability(IGNORE_SHARED, on)
}

fn capability(name: &str, on: bool) -> (&'static str, Value) {
    ("migrate-set-capabilities", json!({"capabilities": [{"capability": name, "state": on}]}))
}

/// A piece of guest memory as QEMU's object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryBackend {
    /// Its id.
    pub id: String,
    /// Its QOM type, such as `memory-backend-file`.
    pub kind: String,
    /// Its file, if it has one.
    pub file: Option<PathBuf>,
    /// Whether it is mapped shared.
    pub share: bool,
}
