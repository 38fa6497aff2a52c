//! What the world is told of a VM: how it is tracked, how far the first pass is, what was found wrong.

use std::time::{Duration, Instant};

use memdex_wire::{
    event::Event,
    vm::{CoverageStatus, IndexProgress, RegionCoverage, Tracking, Witness, WitnessStatus},
};

use super::{Tracker, check::Distrust, region::Watched, ring};
use crate::{host::Status, vm::descriptor::Backing, watch::protection::Protection};

impl Tracker {
    pub(super) fn update_status(&mut self) {
        let of_all = self.doubts_about_all();
        let mut reasons = of_all.clone();
        for watched in &self.regions {
            let coverage = watched.coverage();
            if let Some(reason) = coverage.reason {
                let reason = format!("region {}: {reason}", coverage.region);
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
        self.note_trust();
        let witnesses = self.witnesses();
        let tracking = if reasons.is_empty() { Tracking::Exact } else { Tracking::Advisory };
        let status = Status {
            tracking,
            reasons: reasons.clone(),
            coverage: self.regions.iter().map(|watched| self.covered(watched, &of_all, &witnesses)).collect(),
            witnesses,
        };
        if self.vm.set_status(status) {
            tracing::info!(vm = %self.vm.id(), ?tracking, reasons = reasons.join("; "), "tracking changed");
            self.shared.announce(Event::TrackingChanged { vm: self.vm.id().to_owned(), tracking, reasons });
        }
    }

    /// What is wrong with all of the VM, and so with every region of it.
    fn doubts_about_all(&self) -> Vec<String> {
        let mut reasons = self.descriptor.doubts.clone();
        if self.mapped_lately() && reasons.is_empty() {
            reasons.push(
                "another process has just mapped this VM's RAM writable, and its writes are not seen in the VMM's page tables"
                    .to_owned(),
            );
        }
        reasons.extend(self.distrust.iter().map(Distrust::reason));
        if self.aside {
            reasons.push("its memory is being received from another host".to_owned());
        }
        if self.regions.is_empty() {
            reasons.push("no guest memory was found in this process".to_owned());
        }
        if self.half_blind() {
            reasons.push(
                "writes may be missed: soft-dirty bits need eBPF marks beside them, and this VM's faults are not marked".to_owned(),
            );
        } else if self.protection.is_ok() && !self.told_of_discards() {
            reasons.push(
                "discarded memory (balloon) is only noticed late: the eBPF hooks on discards are not attached".to_owned(),
            );
        } else if self.protection.is_ok() {
            if !self.shared.hooks.remaps_attached() {
                reasons.push(
                    "memory that the VMM replaces is only noticed late: the eBPF hooks on what remaps are not attached".to_owned(),
                );
            }
            if !self.told_of_mappings() {
                reasons.push(
                    "another process that maps this VM's RAM is only noticed late: the eBPF hook on mmap is not attached".to_owned(),
                );
            }
        }
        reasons
    }

    /// Whether eBPF tells of other processes that map this VM's RAM, if any can.
    pub(super) fn told_of_mappings(&self) -> bool {
        self.shared.hooks.mappings_attached() || !self.has_files()
    }

    /// Whether there is memory that another process can map.
    fn has_files(&self) -> bool {
        self.regions.iter().any(|watched| matches!(watched.region.backing, Backing::SharedFile { .. }))
    }

    /// How a region is watched: as it is by itself, and no better than all of the VM.
    fn covered(&self, watched: &Watched, of_all: &[String], witnesses: &[Witness]) -> RegionCoverage {
        let mut coverage = watched.coverage();
        if !watched.armed() && watched.readable() && matches!(self.dirty_ring(), Some(Ok(()))) {
            coverage.reason = coverage.reason.map(|reason| format!("{reason}; {}", ring::LIMITS));
        }
        if coverage.status == CoverageStatus::Exact && !of_all.is_empty() {
            coverage.status = CoverageStatus::Advisory;
            coverage.reason = Some(of_all.join("; "));
        }
        let missing = witnesses.iter().filter(|witness| witness.status == WitnessStatus::Unavailable);
        coverage.missing = missing.map(|witness| witness.name.clone()).collect();
        coverage
    }

    fn witnesses(&self) -> Vec<Witness> {
        let witness = |name: &str, reason: Option<&str>| Witness {
            name: name.to_owned(),
            status: if reason.is_none() { WitnessStatus::Active } else { WitnessStatus::Unavailable },
            reason: reason.map(str::to_owned),
        };
        let no_userfault = match &self.protection {
            Ok(Protection::UserFault(_)) => None,
            Ok(Protection::SoftDirty(_, reason)) | Err(reason) => Some(reason.as_str()),
        };
        let mut witnesses = vec![witness("write-protect", no_userfault)];
        if self.arms_whole() {
            witnesses.push(witness("soft-dirty", None));
        }
        for hook in self.shared.hooks.status() {
            let reason = hook.reason.as_deref().or(self.marks_missing.as_deref());
            witnesses.push(witness(hook.name, reason));
        }
        if let Some(ring) = self.dirty_ring() {
            witnesses.push(witness("kvm-dirty-ring", ring.err().as_deref()));
        }
        if self.doubted() || self.regions.iter().any(|watched| watched.readable() && !watched.armed()) {
            witnesses.push(witness("rehash", None));
        }
        witnesses
    }

    /// Says how far the first pass is.
    pub(super) fn note_progress(&mut self) {
        let left = self.unseen.len();
        if left > 0 {
            self.pass_took = None;
        } else if self.pass_took.is_none() {
            self.pass_took = Some(self.pass_began.elapsed());
            // Growing the reverse index left the smaller tables behind.
            crate::heap::give_back();
            crate::program::let_go_of_code();
        }
        let total = u64::from(self.vm.map().pages());
        let elapsed_ms = self.pass_took.unwrap_or_else(|| self.pass_began.elapsed()).as_millis() as u64;
        self.vm.set_progress(IndexProgress { done: total - left, total, elapsed_ms });
    }

    /// Tells the world at most once a second that the map moved on.
    pub(super) fn announce(&mut self) {
        let (last, told) = self.last_event;
        if last.elapsed() < Duration::from_secs(1) {
            return;
        }
        let (generation, pages) = {
            let map = self.vm.map();
            (map.generation().0, map.counts())
        };
        if generation != told {
            self.last_event = (Instant::now(), generation);
            self.shared.announce(Event::MapChanged { vm: self.vm.id().to_owned(), generation, pages });
        }
    }
}
