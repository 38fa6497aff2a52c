//! Taking out of VMMs what a daemon left there for the next one, when there is to be none.
//!
//! Owns the order: first the claim, so that nothing is taken from a daemon that runs; then the userfaultfd, and with it the write protection; then the map.

use std::collections::BTreeMap;

use crate::{
    map::MapFolder,
    vm::{Discovery, descriptor::ProcessId, filter::NameFilter},
    watch::{
        claim::Claim,
        userfault::{self, AttachError, Token},
    },
};

/// What became of one VM.
#[derive(Debug)]
pub struct Detached {
    /// The VM's id.
    pub id: String,
    /// Its name, or the id again if that is not known.
    pub name: String,
    /// How many userfaultfds were closed in its VMM, or why that could not be done.
    pub outcome: Result<usize, AttachError>,
}

/// Leaves the VMMs of all VMs that the filter lets through as they were before any daemon came, and removes the maps kept of them in `maps`.
#[must_use]
pub fn detach(filter: &NameFilter, maps: &MapFolder) -> Vec<Detached> {
    maps.sweep();
    let mut vms: BTreeMap<String, (ProcessId, String)> = BTreeMap::new();
    for process in maps.processes() {
        // A running daemon has its files locked. The claim says so in a moment.
        let name = maps.find(process).and_then(Result::ok).map(|left| left.owner.name);
        vms.insert(process.to_string(), (process, name.unwrap_or_else(|| process.to_string())));
    }
    // Without eBPF not every VM is found, but there may be some of which the map has been lost.
    for vm in Discovery::new(NameFilter::all()).sweep(None) {
        vms.insert(vm.id(), (vm.process, vm.name.clone()));
    }
    let chosen = vms.into_iter().filter(|(id, (_, name))| filter.allows(name, id));
    let detached =
        chosen.map(|(id, (process, name))| Detached { outcome: detach_one(process, maps), id, name });
    detached.collect()
}

fn detach_one(process: ProcessId, maps: &MapFolder) -> Result<usize, AttachError> {
    let _claim = Claim::take(process)?;
    let token: Option<Token> = maps.find(process).and_then(Result::ok).and_then(|left| left.owner.token);
    let closed = userfault::detach(process, token)?;
    maps.remove(process);
    Ok(closed)
}
