//! Where a chunk of a map stands: what it has to write down elsewhere when it changes.

use std::sync::Arc;

use super::store::{Alike, Slot, Store};
use crate::units::Generation;

/// Where a chunk of a map stands: what it has to write down elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) store: Option<&'a Arc<Store>>,
    /// The map is the one that the store is of, no snapshot.
    owned: bool,
    pub(super) chunk: usize,
}

impl<'a> Cell<'a> {
    pub(super) fn new(store: Option<&'a Arc<Store>>, owned: bool, chunk: usize) -> Self {
        Self { store, owned, chunk }
    }

    pub(super) fn alike(self, page: u8, len: u16, generation: Generation) {
        if let Some(store) = self.store.filter(|_| self.owned) {
            store.set_alike(self.chunk, Alike { page, len, generation: generation.0 });
        }
    }

    pub(super) fn each(self, slot: &Slot) {
        if let Some(store) = self.store.filter(|_| self.owned) {
            store.set_slot(self.chunk, slot);
        }
    }

    pub(super) fn settled(self) {
        if let Some(store) = self.store.filter(|_| self.owned) {
            store.set_time(self.chunk, monotonic_seconds());
        }
    }
}

/// Seconds of the clock that every daemon of this boot has.
pub(crate) fn monotonic_seconds() -> u32 {
    rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse).tv_sec as u32
}
