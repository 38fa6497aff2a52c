//! What is looked at at the source before anything moves. Owns the sentences; changes nothing.

use std::path::Path;

use memdex_wire::{
    migration::{MigrationCheck, MigrationRequest},
    vm::Tracking,
};

use crate::{
    host::Vm,
    migrate::{
        destination::check,
        monitor::{Monitor, Version},
    },
    vm::descriptor::Backing,
};

/// What was found.
pub(super) struct Found {
    pub(super) checks: Vec<MigrationCheck>,
    pub(super) monitor: Option<Monitor>,
    pub(super) version: Option<Version>,
    /// Whether the guest runs (and is not paused).
    pub(super) running: bool,
}

/// Looks at the VM that is to move.
pub(super) async fn look(vm: &Vm, request: &MigrationRequest) -> Found {
    let mut found = Found { checks: Vec::new(), monitor: None, version: None, running: false };
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
            found.checks.push(check("memory", memory(vm, version, &mut monitor).await));
        }
        Err(error) => found.checks.push(check("monitor", Err::<String, _>(error.to_string()))),
    }
    let state = state(&mut monitor).await;
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
async fn memory(vm: &Vm, version: Version, monitor: &mut Monitor) -> Result<String, String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    if version < Version::LEAST || monitor.capability("x-ignore-shared").await.map_err(words)?.is_none() {
        return Err(format!(
            "QEMU {version} cannot leave shared memory out of its own migration: it takes 4.0 or later"
        ));
    }
    let how = "start the VM with -object memory-backend-file,id=ram,size=…,mem-path=/dev/shm/NAME,share=on -machine memory-backend=ram";
    let descriptor = vm.descriptor();
    if descriptor.regions.is_empty() {
        return Err("no guest memory was found in this process".to_owned());
    }
    for region in &descriptor.regions {
        let Backing::SharedFile { path, .. } = &region.backing else {
            return Err(format!(
                "region {} is private memory, which only QEMU itself can move: {how}",
                region.name
            ));
        };
        if version >= Version::NAMED_FILES && path.as_os_str().as_encoded_bytes().starts_with(b"/memfd:") {
            return Err(format!(
                "QEMU {version} sends memory of a memfd by itself (since 8.1 only a file with a name is left out): {how}"
            ));
        }
    }
    match monitor.private_memory().await.map_err(words)?.first() {
        Some(id) => Err(format!("the memory backend {id:?} is not shared: {how}")),
        None => Ok(format!("shared files, QEMU {version} leaves them out of its own migration")),
    }
}

async fn state(monitor: &mut Monitor) -> Result<bool, String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    let state = monitor.status().await.map_err(words)?;
    let (migration, _) = monitor.migration().await.map_err(words)?;
    if matches!(migration.as_str(), "setup" | "active" | "device" | "cancelling" | "pre-switchover") {
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
        "postmigrate" => {
            Err("the VM has moved away already: what is left here is not to run again".to_owned())
        }
        other => Err(format!("the VM is {other}: only one that runs or is paused can be moved")),
    }
}
