//! What eBPF said: taking the marks, and laying them out for the regions as they are.

use std::{ops::Range, sync::atomic::Ordering::Relaxed, time::Instant};

use super::Tracker;
use crate::{
    units::PageRange,
    vm::descriptor::{Accelerator, Backing},
    watch::{
        ebpf::{MarkLayout, MarkRegion, Marks, RamFile, Taken},
        protocol,
    },
};

/// What marks told.
struct Heard {
    began: Instant,
    taken: Taken,
    written: Vec<Range<u32>>,
    discarded: Vec<Range<u32>>,
}

impl Heard {
    fn of(marks: &mut Marks) -> Self {
        let (began, mut written, mut discarded) = (Instant::now(), Vec::new(), Vec::new());
        let taken = marks.take(&mut written, &mut discarded);
        Self { began, taken, written, discarded }
    }
}

impl Tracker {
    /// Takes what eBPF has seen since the last time: stale from now on.
    pub(super) fn take_marks(&mut self) {
        let Some(heard) = self.marks.as_mut().map(Heard::of) else {
            // Nobody tells of discards, so none is known to be in flight.
            self.queue.discards_done();
            return;
        };
        self.act_on(heard);
        if self.calls_lost {
            self.count_calls_anew();
        }
    }

    /// Marks that are to be used no more tell for the last time. The new ones have been in place before, so no event fell between them.
    fn take_last(&mut self, mut old: Marks) {
        let heard = Heard::of(&mut old);
        self.act_on(heard);
    }

    fn act_on(&mut self, heard: Heard) {
        let Heard { began, mut taken, mut written, mut discarded } = heard;
        let before = self.looks.marks_taken();
        // Marks that are missing because the kernel left a program out are like those that name no page.
        let (as_of, left_out) = self.shared.hooks.left_out();
        let known = std::mem::replace(&mut self.left_out, left_out);
        let calls_lost = left_out.calls > known.calls;
        self.calls_lost |= calls_lost;
        taken.overflowed |= left_out.faults > known.faults;
        taken.discards_overflowed |= calls_lost;
        if left_out.mappings > known.mappings {
            self.shared.mappings_changed.store(true, Relaxed);
        }
        self.looks.took_marks(began.min(as_of), !written.is_empty(), taken.overflowed);
        if !written.is_empty() || !discarded.is_empty() {
            let mut map = self.vm.map_mut();
            let noted = protocol::marked(&mut map, &mut self.queue, &mut written, &mut discarded);
            drop(map);
            self.whole.spend_runs(&written);
            self.vm.counters.pages_gone_stale.add(noted.newly_stale);
            self.vm.counters.marks_written.add(noted.written);
            self.vm.counters.marks_discarded.add(noted.discarded);
            self.note_marked(&written);
        }
        if !written.is_empty() || taken.ring_reset {
            self.follow_ring(&written, taken.ring_reset);
        }
        if taken.foreign_mapping {
            self.foreign_mapping(before);
        }
        self.slots_moved |= taken.layout_stale;
        if taken.overflowed {
            self.vm.counters.mark_overflows.add(1);
            self.full_scan.want();
        }
        if taken.discards_overflowed {
            self.vm.counters.mark_overflows.add(1);
            self.everything_discarded();
        }
        // Asked only if somebody waits: asking takes two system calls, and this is done with every tick.
        let awaited = self.queue.awaits_discards() && !self.calls_lost;
        if awaited && self.marks.as_ref().is_none_or(Marks::discards_quiescent) {
            self.queue.discards_done();
        }
    }

    /// The beginning or the end of a discarding call was not counted, and the count would never come out even again: it begins anew. The end of a call that
    /// is under way finds no note of its beginning, and says that anything may have been discarded.
    fn count_calls_anew(&mut self) {
        // The count ends with the last marks.
        self.marks = None;
        self.calls_lost = false;
        self.watch_marks();
        self.update_status();
        // What was written while nobody was marking.
        self.full_scan.want();
        self.everything_discarded();
    }

    /// A discard that could not be told to pages: every page may have been thrown away.
    pub(super) fn everything_discarded(&mut self) {
        for region in 0..self.regions.len() {
            self.may_be_discarded(self.regions[region].range());
        }
    }

    /// Any of these may be being thrown away right now.
    pub(super) fn may_be_discarded(&mut self, pages: PageRange) {
        let newly = protocol::may_be_discarded(&mut self.vm.map_mut(), &mut self.queue, pages);
        self.vm.counters.pages_gone_stale.add(newly);
    }

    /// (Re)starts the eBPF marks with the regions and memslots as they are now.
    pub(super) fn watch_marks(&mut self) {
        // Not so at the beginning: then nothing is known, or what is inherited, which is looked at for itself.
        let deaf = self.marks_missing.is_some() && !self.told_of_discards();
        let blind = self.half_blind();
        let regions = self.regions.iter().map(|watched| MarkRegion {
            start: watched.region.start,
            len: watched.region.len,
            first_page: watched.first_page,
            file: match watched.region.backing {
                Backing::SharedFile { device, inode, offset, .. } => Some(RamFile { device, inode, offset }),
                Backing::PrivateFile { .. } | Backing::Anonymous => None,
            },
        });
        let layout = MarkLayout {
            regions: regions.collect(),
            memslots: self.descriptor.memslots.clone(),
            pages: self.vm.map().pages(),
        };
        match self.shared.hooks.track(self.process.pid, &layout) {
            Ok(marks) => {
                self.marks_missing = None;
                match self.marks.replace(marks) {
                    Some(old) => self.take_last(old),
                    // Who has mapped the RAM while nobody was told of it is found by the next sweep.
                    None => self.shared.mappings_changed.store(true, Relaxed),
                }
            }
            Err(error) => {
                tracing::debug!(vm = %self.vm.id(), %error, "no eBPF marks");
                self.marks_missing = Some(error.to_string());
                if let Some(old) = self.marks.take() {
                    self.take_last(old);
                    self.calls_lost = false;
                    // Whatever is being thrown away right now, nobody will tell us when it is done.
                    self.everything_discarded();
                }
                self.queue.discards_done();
            }
        }
        self.last_watched = Instant::now();
        let held = self.vm.map().held_counts();
        if blind && !self.half_blind() && held.stale < held.total {
            // What both witnesses missed meanwhile shows nowhere.
            self.whole.spend_runs(std::slice::from_ref(&(0..held.total as u32)));
            self.know_nothing();
        } else if deaf && self.told_of_discards() {
            // From now on no audit looks at the bytes. What was thrown away before, and is there again, shows nowhere.
            self.know_nothing();
        }
    }

    /// Whether eBPF tells of memory that is thrown away.
    pub(super) fn told_of_discards(&self) -> bool {
        self.marks.is_some() && self.shared.hooks.discards_attached()
    }

    /// Whether eBPF tells of every write that takes a fault, so that scans need to look only where it points.
    pub(super) fn marks_see_writes(&self) -> bool {
        let hooks = &self.shared.hooks;
        let guest = self.descriptor.accelerator == Accelerator::Tcg || hooks.guest_faults_attached();
        // The fault with which direct I/O pins a page is no exception of the processor's.
        let direct_io = self.descriptor.direct_io.is_some();
        let every_fault = hooks.every_fault_attached() || (hooks.faults_attached() && guest && !direct_io);
        self.marks.is_some() && every_fault
    }
}
