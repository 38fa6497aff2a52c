//! What soft-dirty bits need of the hooks: every fault, every mapping made anew, and whether pages were being migrated.
//!
//! Owns the questions; what follows from the answers is [`crate::watch::softdirty`]'s.

use indexer_common::gate::{CLEARED_BY_OTHERS, MIGRATIONS_ENDED, MIGRATIONS_STARTED};

use super::{Hooks, object::Hook, registry::Registry};

/// No page of the host was being migrated at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quiet {
    started: u64,
}

impl Hooks {
    /// Whether soft-dirty bits can be relied on: what is missing, in a sentence.
    pub(crate) fn beside_soft_dirty(&self) -> Result<(), String> {
        let needed = Hook::OF_SOFT_DIRTY.into_iter().chain([Hook::Remap, Hook::Discard]);
        let missing: Vec<_> = needed.filter(|hook| !self.attached(*hook)).collect();
        match missing.first() {
            None => Ok(()),
            Some(hook) => Err(format!("{} is not attached: {}", hook.name(), self.reason(*hook))),
        }
    }

    /// Whether the kernel's own fault handler is watched: then even a fault that is no exception of the processor's leaves a mark.
    #[must_use]
    pub fn every_fault_attached(&self) -> bool {
        self.attached(Hook::FaultHandler)
    }

    /// Something if at a moment during this call no page of the host was being migrated.
    pub(crate) fn migrations_quiet(&self) -> Option<Quiet> {
        let registry = self.registry()?;
        // Two look-ups, and in this order: see "On calls in flight" in `marks`.
        let ended = registry.gate(MIGRATIONS_ENDED)?;
        let started = registry.gate(MIGRATIONS_STARTED)?;
        (ended == started).then_some(Quiet { started })
    }

    /// Whether it has been so ever since.
    pub(crate) fn still_quiet(&self, since: Quiet) -> bool {
        self.registry().and_then(|registry| registry.gate(MIGRATIONS_STARTED)) == Some(since.started)
    }

    /// How often anybody but the daemon has cleared bits of any process.
    pub(crate) fn cleared_by_others(&self) -> u64 {
        self.registry().and_then(|registry| registry.gate(CLEARED_BY_OTHERS)).unwrap_or(0)
    }

    fn registry(&self) -> Option<&Registry> {
        self.loaded.as_ref().map(|loaded| &*loaded.registry)
    }
}
