//! What VMs left behind: the memory of those that moved away, kept as content for as long as nobody needs the room.
//!
//! Owns which are kept, and giving them up. A VM that comes back, or a sibling of it, finds here what it would otherwise send again.
//! What is kept is held by nothing but an open file: if the VMM has ended and the file has no name any more, letting go gives the memory
//! back to the host. It is given up before anything else suffers: beyond the bound that was set, and at once, oldest first, while the host has less memory
//! available than [`LOW`] of what it has.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use super::Vm;

/// Part of all memory that has to be available, or what is kept is given up: one in this many.
const LOW: u64 = 10;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Arc<Vm>>>);

/// What is kept, in figures.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeptFigures {
    /// VMs.
    pub vms: u64,
    /// Bytes of their pages with content.
    pub bytes: u64,
}

impl Kept {
    /// Keeps the memory of a VM that has ended.
    pub(super) fn add(&self, vm: Arc<Vm>) {
        self.lock().push(vm);
    }

    /// Gives up what there is no room for. Returns those that are to be forgotten.
    pub(super) fn give_up(&self, most: u64) -> Vec<Arc<Vm>> {
        let mut kept = self.lock();
        if kept.is_empty() {
            return Vec::new();
        }
        let mut given_up = Vec::new();
        let scarce = available().is_some_and(|(available, total)| available < total / LOW);
        while !kept.is_empty() && (scarce || kept.iter().map(|vm| held(vm)).sum::<u64>() > most) {
            given_up.push(kept.remove(0));
            if scarce {
                // One at a time: the next sweep sees what it gave.
                break;
            }
        }
        given_up
    }

    /// Everything that is kept.
    pub(super) fn take_all(&self) -> Vec<Arc<Vm>> {
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn figures(&self) -> KeptFigures {
        let kept = self.lock();
        KeptFigures { vms: kept.len() as u64, bytes: kept.iter().map(|vm| held(vm)).sum() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Vm>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held(vm: &Vm) -> u64 {
    crate::units::bytes(vm.map().held_counts().current)
}

/// Memory that is available and that there is, in KiB; `None` if the kernel does not say.
fn available() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    Some((field("MemAvailable:")?, field("MemTotal:")?))
}
