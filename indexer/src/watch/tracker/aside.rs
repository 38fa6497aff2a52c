//! Standing aside while a migration fills the VM's memory.
//!
//! What arrives is written to the RAM file by the daemon itself, not through the VMM's page table: no witness would see it, and what the tracker read
//! meanwhile would be called current wrongly. So as long as [`crate::host::Vm`] says that it is receiving, every page is stale and nothing is armed, read
//! or published. Afterwards everything is read as if it had never been seen.

use std::sync::mpsc::RecvTimeoutError;

use tokio::sync::oneshot;

use super::{Command, Tracker};
use crate::host::JobError;

impl Tracker {
    /// One step of doing nothing.
    pub(super) fn step_aside(&mut self) {
        self.begin_aside();
        match self.commands.recv_timeout(self.options.tick) {
            Ok(Command::StandAside { reply }) => self.stand_aside(reply),
            Ok(Command::Sync { reply, .. }) => drop(reply.send(Err(JobError::Receiving))),
            Ok(Command::Verify { reply }) => drop(reply.send(Err(JobError::Receiving))),
            Ok(Command::CloseUnsettled { reply }) => drop(reply.send(Err(JobError::Receiving))),
            Ok(Command::Changed(descriptor)) => self.changed(descriptor),
            Ok(Command::Drained { reply, .. }) => drop(reply.send(Err(JobError::Receiving))),
            Ok(Command::Wake) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(self.options.tick),
        }
        // Whether the VMM has ended, the sweep finds out.
        self.take_marks();
        self.note_freshness();
    }

    /// Answers who asked for it, once nothing of the memory is being read any more.
    pub(super) fn stand_aside(&mut self, reply: oneshot::Sender<Result<(), JobError>>) {
        if self.vm.receiving() {
            self.begin_aside();
            let _ = reply.send(Ok(()));
        } else {
            // It was called off before we heard of it.
            let _ = reply.send(Err(JobError::Receiving));
        }
    }

    fn begin_aside(&mut self) {
        if !self.aside {
            self.aside = true;
            self.abandon_jobs(JobError::Receiving);
            self.all_stale();
            self.update_status();
        }
    }

    /// The memory is the guest's again.
    pub(super) fn come_back(&mut self) {
        self.aside = false;
        self.take_marks();
        self.all_stale();
        self.read_again();
        self.full_scan.want();
        self.update_status();
    }

    fn all_stale(&mut self) {
        for region in 0..self.regions.len() {
            let range = self.regions[region].range();
            self.stale_run(&range);
        }
    }
}
