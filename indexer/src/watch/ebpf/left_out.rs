//! Programs that the kernel has left out, and so marks that are missing.
//!
//! The kernel runs no program of a tracepoint while another one runs on that processor, or while a map is being changed there. On a kernel that does not preempt
//! itself neither can be interrupted by a guest's fault. One that does (`preempt=full` or `lazy`) may put a vCPU in the place of a thread that is changing a map, and the
//! fault of that vCPU leaves no mark. But it is counted, before the fault is resolved: so whoever looks at the counts *after* taking the marks knows of all that is
//! missing in them.
//!
//! Owns the counts. What follows from one that has grown is the tracker's part.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aya::{Ebpf, programs::Program};

use super::program::recursion_misses;

/// Several trackers that look within this time look once.
const TOGETHER: Duration = Duration::from_millis(20);

/// How often programs were left out since they were loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LeftOut {
    /// Those on page faults and on KVM: writes without a mark.
    pub(crate) faults: u64,
    /// Those on system calls and migrations: beginnings and ends that were not counted.
    pub(crate) calls: u64,
    /// The one on other processes' mappings.
    pub(crate) mappings: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fault,
    Call,
    Mapping,
}

impl Kind {
    fn of(program: &str) -> Option<Self> {
        match program {
            // Runs when the daemon asks for it.
            "memslots" => None,
            "foreign_mmap" => Some(Self::Mapping),
            _ if program.starts_with("kvm_") || program.contains("fault") => Some(Self::Fault),
            _ => Some(Self::Call),
        }
    }
}

/// Where the counts are, and what they were.
#[derive(Debug)]
pub(super) struct Counts {
    programs: Vec<(Kind, OwnedFd)>,
    last: Mutex<Option<(Instant, LeftOut)>>,
}

impl Counts {
    /// Of all programs that are loaded.
    pub(super) fn of(object: &Ebpf) -> Self {
        let programs =
            object.programs().filter_map(|(name, program)| Some((Kind::of(name)?, open(program)?)));
        Self { programs: programs.collect(), last: Mutex::new(None) }
    }

    /// The counts, and a moment before which nothing was left out that is not in them.
    pub(super) fn look(&self) -> (Instant, LeftOut) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = last.filter(|(at, _)| at.elapsed() < TOGETHER) {
            return fresh;
        }
        let at = Instant::now();
        let mut sum = LeftOut::default();
        for (kind, program) in &self.programs {
            // No error but a wrong descriptor is known, and this one is ours.
            let count = recursion_misses(program.as_fd()).unwrap_or(0);
            *match kind {
                Kind::Fault => &mut sum.faults,
                Kind::Call => &mut sum.calls,
                Kind::Mapping => &mut sum.mappings,
            } += count;
        }
        *last.insert((at, sum))
    }
}

/// Keeps a program open; `None` if it is not loaded.
fn open(program: &Program) -> Option<OwnedFd> {
    program.fd().ok()?.as_fd().try_clone_to_owned().ok()
}

/// How often one program was left out; `None` if it is not loaded.
pub(super) fn missed(program: &Program) -> Option<u64> {
    recursion_misses(program.fd().ok()?.as_fd()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_of_a_kind() {
        let kinds =
            ["kvm_page_fault", "page_fault_kernel", "handle_mm_fault", "enter_fallocate", "foreign_mmap"]
                .map(|name| Kind::of(name).unwrap());
        assert_eq!(kinds, [Kind::Fault, Kind::Fault, Kind::Fault, Kind::Call, Kind::Mapping]);
        assert_eq!(Kind::of("memslots"), None);
    }
}
