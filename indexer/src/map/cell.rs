//! Where a map and its chunks stand: what has to be written down elsewhere when they change.

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

/// Where the blocks of a map are.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) store: Option<Arc<Store>>,
    /// False in a copy: it has the blocks, but the file is not about it.
    pub(super) owned: bool,
}

impl Shelf {
    pub(super) fn cell(&self, chunk: usize) -> Cell<'_> {
        Cell::new(self.store.as_ref(), self.owned, chunk)
    }

    pub(super) fn written_down(&self) -> Option<&Arc<Store>> {
        self.store.as_ref().filter(|_| self.owned)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        // Before the chunks: they are left to the next daemon, not given back.
        if let Some(store) = self.written_down() {
            store.close();
        }
    }
}

impl Clone for Shelf {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), owned: false }
    }
}

/// Seconds of the clock that every daemon of this boot has.
pub(crate) fn monotonic_seconds() -> u32 {
    rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse).tv_sec as u32
}
