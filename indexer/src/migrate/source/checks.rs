//! What is looked at at the source before anything moves. Owns the sentences; changes nothing.

use std::path::Path;

use memdex_wire::{
    migration::{MigrationCheck, MigrationRequest},
    vm::Tracking,
};

use crate::{
    host::Vm,
    migrate::{
        backends::Backends,
        destination::check,
        monitor::{Monitor, Version},
    },
};

/// What was found.
pub(super) struct Found {
    pub(super) checks: Vec<MigrationCheck>,
    pub(super) monitor: Option<Monitor>,
    pub(super) version: Option<Version>,
    /// Whether the guest runs (and is not paused).
    pub(super) running: bool,
    /// Ids of the memory backends, if there are several.
    pub(super) backends: Vec<String>,
}

/// Looks at the VM that is to move.
pub(super) async fn look(vm: &Vm, request: &MigrationRequest) -> Found {
    let mut found =
        Found { checks: Vec::new(), monitor: None, version: None, running: false, backends: Vec::new() };
    let descriptor = vm.descriptor();
    found.checks.push(check("tracking", tracking(vm)));
    let mut monitor = match Monitor::open(descriptor.process, request.qmp.as_deref().map(Path::new)).await {
        Ok(monitor) => monitor,
        Err(why) => {
            found.checks.push(check("monitor", Err::<String, _>(why)));
            return found;
        }
    };
    match monitor.version().await {
        Ok(version) => {
            found.version = Some(version);
            let words = format!("QEMU {version} at {}", monitor.path().display());
            found.checks.push(check("monitor", Ok::<_, String>(words)));
            let memory = memory(vm, version, &mut monitor).await;
            let words = format!("shared files, which QEMU {version} leaves out of its own migration");
            found.checks.push(check("memory", memory.as_ref().map(|_| words).map_err(Clone::clone)));
            found.backends = memory.unwrap_or_default();
        }
        Err(error) => found.checks.push(check("monitor", Err::<String, _>(error.to_string()))),
    }
    let state = state(&mut monitor, vm.moved_away()).await;
    found.running = state.as_ref().is_ok_and(|running| *running);
    let state =
        state.map(
            |running| {
                if running { "the guest runs" } else { "the guest is paused, and will be paused there" }
            },
        );
    found.checks.push(check("state", state));
    found.monitor = Some(monitor);
    found
}

fn tracking(vm: &Vm) -> Result<String, String> {
    let info = vm.info();
    match info.tracking {
        Tracking::Exact => Ok("exact".to_owned()),
        Tracking::Advisory if info.witnesses.is_empty() => {
            Err("tracking is just beginning: try again in a moment".to_owned())
        }
        Tracking::Advisory => Ok(format!(
            "advisory ({}): all memory is read again while the guest stands still, which takes a while",
            info.advisory_reasons.join("; ")
        )),
    }
}

/// QEMU has to leave its memory to us.
async fn memory(vm: &Vm, version: Version, monitor: &mut Monitor) -> Result<Vec<String>, String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    if version < Version::LEAST || monitor.capability("x-ignore-shared").await.map_err(words)?.is_none() {
        return Err(format!(
            "QEMU {version} cannot leave shared memory out of its own migration: it takes 4.0 or later"
        ));
    }
    let backends = Backends::look(monitor).await?;
    let descriptor = vm.descriptor();
    backends.check(version, &descriptor.regions)?;
    let blockers = monitor.blockers().await.map_err(words)?;
    if !blockers.is_empty() {
        return Err(format!("QEMU says that this VM cannot migrate: {}", blockers.join("; ")));
    }
    backends.ids(&descriptor.regions)
}

/// Whether this state of QEMU's own migration is that of one that has not ended.
pub(super) fn under_way(migration: &str) -> bool {
    let states = [
        "setup",
        "active",
        "device",
        "cancelling",
        "pre-switchover",
        "wait-unplug",
        "colo",
        "postcopy-active",
        "postcopy-paused",
        "postcopy-recover",
        "postcopy-device",
    ];
    states.contains(&migration)
}

async fn state(monitor: &mut Monitor, moved_away: bool) -> Result<bool, String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    let state = monitor.status().await.map_err(words)?;
    let (migration, _) = monitor.migration().await.map_err(words)?;
    if under_way(&migration) {
        return Err(format!(
            "QEMU has a migration of its own under way ({migration}): wait for its end, or cancel it"
        ));
    }
    match state.as_str() {
        "running" => Ok(true),
        "paused" => Ok(false),
        "inmigrate" => {
            Err("the VM waits for a migration itself (-incoming): there is nothing to move yet".to_owned())
        }
        "postmigrate" if moved_away => {
            Err("the VM has moved away already: what is left here is not to run again".to_owned())
        }
        "postmigrate" => Err(
            "QEMU has saved or migrated the VM (postmigrate): if its guest runs nowhere else, let it run with `cont` first"
                .to_owned(),
        ),
        other => Err(format!("the VM is {other}: only one that runs or is paused can be moved")),
    }
}
