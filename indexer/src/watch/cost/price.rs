//! What a fault costs on this machine: measured once, at start, in memory of the daemon's own that is watched as a guest's is.
//!
//! Owns the measuring, some milliseconds of it. The kernel and the processor decide the price (mitigations alone make it double), so a constant would be
//! wrong nearly everywhere. The eBPF program that marks the page runs within the fault and is measured with it.
#![expect(unsafe_code, reason = "it maps memory and writes it")]

use std::time::Instant;

use memdex_wire::PAGE_SIZE;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::{
    units::Hva,
    vm::descriptor::Accelerator,
    watch::{
        ebpf::{Hooks, MarkLayout, MarkRegion},
        userfault::{self, UserFault},
    },
};

/// Pages written in each round.
const PAGES: usize = 256;
/// The middle one counts: a round may be interrupted.
const ROUNDS: usize = 15;
/// If it cannot be measured, which is so where nothing can be armed.
const FAULT: u64 = 1000;
/// A measured price outside of this is an accident.
const PLAUSIBLE: std::ops::RangeInclusive<u64> = 100..=20_000;
/// What a guest's processor loses when a run is armed: it is interrupted to throw away translations. A process loses too little to be measured
/// (`cargo xtask bench --only guest_cost`); hardware that virtualizes has to leave the guest and enter it again, for which a microsecond is reckoned.
const ARM_RUN: u64 = 1000;
/// What a fault of a guest costs beyond one of a process: leaving the guest, KVM's own fault, entering it again
/// (`cargo xtask bench --only guest_cost`).
const GUEST: u64 = 650;

/// What things cost a guest, in nanoseconds of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    /// The first write to an armed page, beyond what a write costs anyway.
    pub fault: u64,
    /// Arming pages in a row with one call.
    pub arm_run: u64,
}

impl Default for Prices {
    fn default() -> Self {
        Self { fault: FAULT, arm_run: ARM_RUN }
    }
}

impl Prices {
    /// Measures them, with the eBPF programs at work if they are attached. Takes some milliseconds.
    #[must_use]
    pub fn measure(hooks: &Hooks) -> Self {
        let Some(memory) = Memory::new() else { return Self::default() };
        // Dropped at the end: the daemon is no VM.
        let _marks = hooks.track(std::process::id(), &memory.layout()).ok();
        let Some(fault) = memory.fault() else { return Self::default() };
        let fault = fault.clamp(*PLAUSIBLE.start(), *PLAUSIBLE.end());
        tracing::debug!(fault, "nanoseconds that the first write to an armed page costs");
        Self { fault, ..Self::default() }
    }

    /// The same for a VM of this kind.
    #[must_use]
    pub fn of(self, accelerator: Accelerator) -> Self {
        match accelerator {
            Accelerator::Kvm => Self { fault: self.fault + GUEST, ..self },
            _ => self,
        }
    }
}

/// Shared memory of the daemon's, as a RAM file is.
struct Memory {
    start: *mut u8,
    userfault: UserFault,
}

impl Memory {
    fn new() -> Option<Self> {
        let userfault = userfault::own().ok()?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; `Drop` removes it.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), PAGES * PAGE_SIZE, protection, MapFlags::SHARED) }
                .ok()?
                .cast();
        let memory = Self { start, userfault };
        memory.write();
        memory.userfault.register(memory.range()).ok()?;
        Some(memory)
    }

    fn range(&self) -> std::ops::Range<Hva> {
        let start = Hva(self.start as u64);
        start..start.add((PAGES * PAGE_SIZE) as u64)
    }

    fn layout(&self) -> MarkLayout {
        let region = MarkRegion {
            start: Hva(self.start as u64),
            len: (PAGES * PAGE_SIZE) as u64,
            first_page: 0,
            file: None,
        };
        MarkLayout { regions: vec![region], memslots: Vec::new(), pages: PAGES as u32 }
    }

    /// Nanoseconds of a fault; `None` if the memory cannot be armed.
    fn fault(&self) -> Option<u64> {
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            self.userfault.arm(self.range()).ok()?;
            let armed = self.write();
            let writable = self.write();
            rounds.push(armed.saturating_sub(writable) / PAGES as u64);
        }
        rounds.sort_unstable();
        Some(rounds[ROUNDS / 2])
    }

    /// Writes a word in each page; nanoseconds for all.
    fn write(&self) -> u64 {
        let began = Instant::now();
        for page in 0..PAGES {
            // SAFETY: within the mapping, which nobody else knows.
            unsafe { self.start.add(page * PAGE_SIZE).write_volatile(1) };
        }
        u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, to which there are no references.
        let _ = unsafe { munmap(self.start.cast(), PAGES * PAGE_SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_costs_more_than_nothing_and_less_than_a_system_call_to_a_disk() {
        let memory = Memory::new().expect("this kernel can arm memory");
        let fault = memory.fault().expect("and takes faults");
        assert!(PLAUSIBLE.contains(&fault), "{fault} ns");
    }
}
