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
        let sizes: Vec<u64> = kept.iter().map(|vm| held(vm)).collect();
        let count = surplus(&sizes, most, available());
        kept.drain(..count).collect()
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

/// How many are to go, of those that hold so many bytes, the oldest first. `available`: see [`available`].
fn surplus(sizes: &[u64], most: u64, available: Option<(u64, u64)>) -> usize {
    // One at a time: the next sweep sees what it gave.
    let scarce = available.is_some_and(|(available, total)| available < total / LOW);
    let mut sum: u64 = sizes.iter().sum();
    let mut count = 0;
    while count < sizes.len() && sum > most {
        sum -= sizes[count];
        count += 1;
    }
    count.max(usize::from(scarce && !sizes.is_empty()))
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

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Option<(u64, u64)> = Some((50, 100));
    const SCARCE: Option<(u64, u64)> = Some((9, 100));

    #[test]
    fn the_oldest_go_until_the_rest_fits() {
        assert_eq!(surplus(&[5, 3, 2], 10, PLENTY), 0);
        assert_eq!(surplus(&[5, 3, 2], 9, PLENTY), 1);
        assert_eq!(surplus(&[1, 3, 2], 2, PLENTY), 2);
        assert_eq!(surplus(&[1, 3, 2], 0, PLENTY), 3);
        assert_eq!(surplus(&[11], 10, None), 1, "nothing is kept that is larger than all that may be kept");
        assert_eq!(surplus(&[0], 0, PLENTY), 0);
    }

    #[test]
    fn one_goes_at_a_time_while_memory_is_scarce() {
        assert_eq!(surplus(&[5, 3, 2], 10, SCARCE), 1);
        assert_eq!(surplus(&[5, 3, 2], 2, SCARCE), 2, "and what does not fit as well");
        assert_eq!(surplus(&[], 10, SCARCE), 0);
        assert_eq!(surplus(&[5], 10, None), 0, "a kernel that does not say is not scarce");
    }
}
