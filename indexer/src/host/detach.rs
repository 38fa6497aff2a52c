//! Taking out of VMMs what a daemon left there for the next one, when there is to be none.
//!
//! Owns the order: first the claim, so that nothing is taken from a daemon that runs; then the userfaultfd, and with it the write protection; then the map.

use crate::{
    map::MapFolder,
    vm::{Discovery, filter::NameFilter},
    watch::{
        claim::Claim,
        userfault::{self, AttachError},
    },
};

/// What became of one VM.
#[derive(Debug)]
pub struct Detached {
    /// The VM's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How many userfaultfds were closed in its VMM, or why that could not be done.
    pub outcome: Result<usize, AttachError>,
}

/// Leaves the VMMs of all VMs that the filter lets through as they were before any daemon came, and removes the maps kept of them in `maps`.
#[must_use]
pub fn detach(filter: NameFilter, maps: &MapFolder) -> Vec<Detached> {
    let found = Discovery::new(filter).sweep(None);
    let detached = found.iter().map(|vm| {
        let outcome = Claim::take(vm.process).and_then(|_claim| {
            let token = maps.find(vm.process).and_then(Result::ok).and_then(|left| left.owner.token);
            let ranges: Vec<_> = vm.regions.iter().map(|region| region.start..region.end()).collect();
            let closed = userfault::detach(vm.process, token, &ranges)?;
            maps.remove(vm.process);
            Ok(closed)
        });
        Detached { id: vm.id(), name: vm.name.clone(), outcome }
    });
    let detached = detached.collect();
    maps.sweep();
    detached
}
