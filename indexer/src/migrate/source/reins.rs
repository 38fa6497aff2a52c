//! What a migration has done to the guest, and what its guard is told of that.
//!
//! Owns both, so that they never differ: before anything is done to the guest the guard has its orders to undo it, and as soon as it is undone the guard is told to leave the
//! guest alone. So whoever pauses the guest at any other moment finds it paused when the migration ends, however it ends.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Stop;
use crate::migrate::{
    guard::{Guard, Orders, Step},
    monitor::ignore_shared,
    resolve::Destination,
};

/// What a migration has done to the guest, or may have: what is to be undone if it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Held {
    /// Nothing. If it stands still, somebody else has stopped it.
    No,
    /// It may have been stopped.
    Stopped,
    /// Besides, QEMU may have been told to write its device state.
    Saving,
}

impl Held {
    /// The run states of QEMU out of which we let the guest run. Any other one is not our doing: it has powered itself off, another migration has taken it away.
    pub(super) const fn ours(self) -> &'static [&'static str] {
        match self {
            Self::No => &[],
            Self::Stopped => &["paused"],
            Self::Saving => &["paused", "finish-migrate", "postmigrate"],
        }
    }
}

/// See the module.
pub(super) struct Reins {
    vm: String,
    /// What is told to the VMM that is left here.
    at_source: Vec<Step>,
    /// QEMU had shared memory switched out of its migration before.
    ignored_shared: bool,
    state: Mutex<State>,
}

struct State {
    guard: Option<Guard>,
    held: Held,
    /// The guest runs, and is to run there.
    running: bool,
}

impl Reins {
    /// With a guard that has its first orders: nothing has been done yet.
    pub(super) fn new(
        vm: String,
        at_source: Vec<Step>,
        ignored_shared: bool,
        running: bool,
        guard: Guard,
    ) -> Self {
        let state = Mutex::new(State { guard: Some(guard), held: Held::No, running });
        Self { vm, at_source, ignored_shared, state }
    }

    pub(super) fn held(&self) -> Held {
        self.state().held
    }

    pub(super) fn running(&self) -> bool {
        self.state().running
    }

    pub(super) fn set_running(&self, running: bool) {
        self.state().running = running;
    }

    pub(super) const fn ignored_shared(&self) -> bool {
        self.ignored_shared
    }

    /// The guest is about to be held so, or is not any more.
    pub(super) fn hold(&self, held: Held) -> Result<(), Stop> {
        let mut state = self.state();
        self.tell(&mut state, held, None)?;
        state.held = held;
        Ok(())
    }

    /// It is about to be handed over: whether it is to be undone is asked there first.
    pub(super) fn hand_over(&self, destination: &Destination) -> Result<(), Stop> {
        self.tell(&mut self.state(), Held::Saving, Some(destination.clone()))
    }

    /// Nobody has to be asked any more.
    pub(super) fn ask_nobody(&self) {
        let mut state = self.state();
        let held = state.held;
        let _ = self.tell(&mut state, held, None);
    }

    /// The guest runs there.
    pub(super) fn gone(&self) {
        let _ = self.order(&mut self.state(), None, self.at_source.clone());
    }

    /// There is nothing to guard any more.
    pub(super) fn release(&self) {
        if let Some(guard) = self.state().guard.take() {
            guard.release();
        }
    }

    /// The guard goes on alone.
    pub(super) fn leave_to_guard(&self) {
        self.state().guard = None;
    }

    fn tell(&self, state: &mut State, held: Held, ask: Option<Destination>) -> Result<(), Stop> {
        let mut steps = Vec::new();
        if held == Held::Saving {
            steps.push(Step::new("migrate_cancel"));
        }
        if held != Held::No && state.running {
            steps.push(Step::run(held.ours()));
        }
        steps.push(Step::with(ignore_shared(self.ignored_shared)));
        self.order(state, ask, steps)
    }

    fn order(&self, state: &mut State, ask: Option<Destination>, steps: Vec<Step>) -> Result<(), Stop> {
        let (vm, gone) = (self.vm.clone(), self.at_source.clone());
        let orders = Orders { vm, ask, steps, gone, ran: None };
        let guard = state.guard.as_mut().ok_or_else(|| Stop::failed("there is no guard"))?;
        guard.order(&orders).map_err(|error| Stop::failed(format!("the VM's guard has ended: {error}")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
