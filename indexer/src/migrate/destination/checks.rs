//! What is looked at at the destination before anything moves. Owns the sentences; changes nothing.

use std::{collections::HashSet, path::Path, sync::Arc};

use memdex_wire::{bulk::KeyId, migration::MigrationCheck, transfer::Hello};

use crate::{
    host::{FindError, Host, Vm},
    map::Layout,
    memory::Ram,
    migrate::{
        backends::Backends,
        monitor::{Monitor, Version},
    },
    units::bytes,
    vm::{
        descriptor::{Backing, ProcessId, Region},
        writable_mappers,
    },
};

/// What was found.
pub(super) struct Found {
    pub(super) checks: Vec<MigrationCheck>,
    pub(super) vm: Option<Arc<Vm>>,
    pub(super) monitor: Option<Monitor>,
    pub(super) ram: Option<Ram>,
    pub(super) version: Option<Version>,
    pub(super) layout: Layout,
}

/// The key of this host's fingerprints, in hex.
pub(crate) fn key() -> String {
    KeyId::PLAIN.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One thing that was looked at.
pub(crate) fn check(name: &str, result: Result<impl Into<String>, impl Into<String>>) -> MigrationCheck {
    let (ok, detail) = match result {
        Ok(detail) => (true, detail.into()),
        Err(detail) => (false, detail.into()),
    };
    MigrationCheck { name: name.to_owned(), ok, detail: migrate_client::printable(&detail) }
}

/// Looks at the waiting VM.
pub(super) async fn look(host: &Host, hello: &Hello) -> Found {
    let mut found = Found {
        checks: Vec::new(),
        vm: None,
        monitor: None,
        ram: None,
        version: None,
        layout: Layout::default(),
    };
    let key = if hello.key == key() {
        Ok("both hosts name contents in the same way")
    } else {
        Err(
            "the two hosts name contents with different keys, so nothing they know matches: run the same version of memdexd on both",
        )
    };
    found.checks.push(check("key", key));
    let vm = match host.find(&hello.dest_vm) {
        Ok(vm) => vm,
        Err(error) => {
            let why = match error {
                FindError::NotFound(name) => format!(
                    "no VM called {name:?} waits at the destination: start it there with the same command line and -incoming defer, or name it (`memdex migrate --dry-run --dest-vm NAME`; `memdex --host DESTINATION vms` lists those that are there)"
                ),
                FindError::Ambiguous { .. } => {
                    format!("at the destination {error}; say which with --dest-vm")
                }
            };
            found.checks.push(check("destination", Err::<String, _>(why)));
            return found;
        }
    };
    let descriptor = vm.descriptor();
    found.checks.push(check("destination", Ok::<_, String>(format!("{} ({})", vm.name(), vm.id()))));
    found.layout = Layout::of(&descriptor.regions);
    let ours: Vec<u64> = found.layout.regions().iter().map(|region| u64::from(region.pages)).collect();
    found.checks.push(check("layout", layout(&hello.regions, &ours)));
    let ram = Ram::open(descriptor.process, &descriptor.regions, &found.layout);
    let room = ram.as_ref().map_err(Clone::clone).and_then(|ram| room(ram, hello));
    found.ram = ram.ok();
    // A look through all processes takes a while: beside the talk with the monitor.
    let alone = {
        let descriptor = Arc::clone(&descriptor);
        tokio::task::spawn_blocking(move || exclusive(descriptor.process, &descriptor.regions))
    };
    match Monitor::open(descriptor.process, hello.dest_qmp.as_deref().map(Path::new)).await {
        Ok(mut monitor) => {
            let state = state(&mut monitor).await;
            match monitor.version().await {
                Ok(version) => {
                    found.version = Some(version);
                    let memory = memory(&mut monitor, version, &descriptor.regions, &hello.backends).await;
                    found.checks.push(check("destination_backends", memory));
                    let words = format!("QEMU {version} at {}", monitor.path().display());
                    found.checks.push(check("destination_monitor", Ok::<_, String>(words)));
                }
                Err(error) => {
                    found.checks.push(check("destination_monitor", Err::<String, _>(error.to_string())));
                }
            }
            found.checks.push(check("destination_state", state));
            found.monitor = Some(monitor);
        }
        Err(why) => found.checks.push(check("destination_monitor", Err::<String, _>(why))),
    }
    let alone = alone.await.unwrap_or_else(|_| Err("this memdexd is stopping".to_owned()));
    found.checks.push(check("destination_memory", alone.and(room)));
    found.vm = Some(vm);
    found
}

fn layout(theirs: &[u64], ours: &[u64]) -> Result<String, String> {
    let size = |regions: &[u64]| {
        let sizes: Vec<_> = regions.iter().map(|pages| format!("{} MiB", bytes(*pages) >> 20)).collect();
        sizes.join(" + ")
    };
    if theirs == ours {
        Ok(format!("the same memory on both sides: {}", size(ours)))
    } else {
        Err(format!(
            "the VM has {} of memory here and {} there: start the waiting one with the same -m and memory backends",
            size(theirs),
            size(ours)
        ))
    }
}

/// QEMU there has to leave the same memory to us.
async fn memory(
    monitor: &mut Monitor,
    version: Version,
    regions: &[Region],
    theirs: &[String],
) -> Result<String, String> {
    let backends = Backends::look(monitor).await?;
    backends.check(version, regions).map_err(|why| format!("at the destination: {why}"))?;
    let ours = backends.ids(regions).map_err(|why| format!("at the destination: {why}"))?;
    if ours != theirs {
        return Err(format!(
            "the VM's memory is made of the backends {} here and {} there, in this order: start the waiting one with the same -object and -device options, in the same order",
            theirs.join(", "),
            ours.join(", ")
        ));
    }
    Ok("shared files, left out of QEMU's own migration".to_owned())
}

/// The waiting VM's memory has to be its alone: it is going to be overwritten.
fn exclusive(vmm: ProcessId, regions: &[Region]) -> Result<(), String> {
    let files: HashSet<(u64, u64)> = regions
        .iter()
        .filter_map(|region| match region.backing {
            Backing::SharedFile { device, inode, .. } => Some((device, inode)),
            _ => None,
        })
        .collect();
    if files.len() != regions.len() {
        return Err(
            "two pieces of the waiting VM's memory are one file: give each a file of its own".to_owned()
        );
    }
    match writable_mappers(&files, vmm.pid).first() {
        None => Ok(()),
        Some((pid, name)) => Err(format!(
            "process {pid} ({name}) has the RAM file of the waiting VM mapped for writing: give the waiting VM a RAM file of its own"
        )),
    }
}

/// Whether the guest's memory will fit.
fn room(ram: &Ram, hello: &Hello) -> Result<String, String> {
    let room = ram.room().map_err(|error| format!("its RAM file cannot be looked at: {error}"))?;
    let needed = bytes(hello.populated);
    let available = available().unwrap_or(u64::MAX);
    let have = room.taken.saturating_add(room.free.min(available));
    let mib = |bytes: u64| bytes >> 20;
    if needed > have {
        return Err(format!(
            "the guest has {} MiB of memory in use, the destination has room for {} MiB: make room there",
            mib(needed),
            mib(have)
        ));
    }
    Ok(format!("a shared RAM file, and room for the {} MiB in use", mib(needed)))
}

fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

/// The VM has to be waiting, and nobody else may be sending to it.
async fn state(monitor: &mut Monitor) -> Result<String, String> {
    let state = monitor.status().await.map_err(|error| error.to_string())?;
    let (migration, _) = monitor.migration().await.map_err(|error| error.to_string())?;
    if state != "inmigrate" {
        return Err(format!(
            "the VM at the destination is {state}, not waiting: start it with -incoming defer"
        ));
    }
    if !matches!(migration.as_str(), "" | "none") {
        return Err(format!("a migration into the waiting VM is {migration} already: start it anew"));
    }
    Ok("it waits".to_owned())
}
