//! Room for one block: in the store's file, or on the heap where there is no file.
//!
//! Owns the memory of one [`Block`], as a `Box` would. Cloning takes other room and copies; dropping gives the room back.
#![expect(unsafe_code, reason = "owns memory in a mapped file")]

use std::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

use super::{super::block::Block, Store};

/// See the module.
#[derive(Debug)]
pub(in crate::map) struct Slot {
    block: NonNull<Block>,
    home: Option<(Arc<Store>, u32)>,
}

// SAFETY: a slot is the one owner of its block, like a `Box<Block>`, and `Block` is `Send` and `Sync`.
unsafe impl Send for Slot {}
// SAFETY: as above: `&Slot` only gives `&Block`.
unsafe impl Sync for Slot {}

impl Slot {
    /// Room in `store` if it has any, else on the heap, with `block` in it.
    pub(in crate::map) fn new(store: Option<&Arc<Store>>, block: &Block) -> Self {
        if let Some(store) = store
            && let Some((index, place)) = store.take()
        {
            let place = place.cast::<Block>();
            // SAFETY: the store gave us this place, which is as large and as aligned as a block, for ourselves alone until we give it back;
            // a block is plain data without a destructor, so a bitwise copy of one is one.
            unsafe { std::ptr::copy_nonoverlapping(block, place.as_ptr(), 1) };
            return Self { block: place, home: Some((Arc::clone(store), index)) };
        }
        let heap = Box::leak(Box::new(block.copy()));
        Self { block: NonNull::from(heap), home: None }
    }

    /// A block that an earlier daemon left at this place.
    ///
    /// # Safety
    /// Nobody else may own the slot `index` of `store`, now or as long as this lives.
    pub(super) unsafe fn adopt(store: &Arc<Store>, index: u32, place: NonNull<u8>) -> Self {
        Self { block: place.cast(), home: Some((Arc::clone(store), index)) }
    }

    /// Its number in the store, if it is in there.
    pub(super) fn index(&self) -> Option<u32> {
        self.home.as_ref().map(|(_, index)| *index)
    }
}

impl Clone for Slot {
    fn clone(&self) -> Self {
        Self::new(self.home.as_ref().map(|(store, _)| store), self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.home.take() {
            Some((store, index)) => store.give_back(index),
            // SAFETY: `new` made it from a box and nobody else has the pointer.
            None => drop(unsafe { Box::from_raw(self.block.as_ptr()) }),
        }
    }
}

impl Deref for Slot {
    type Target = Block;

    fn deref(&self) -> &Block {
        // SAFETY: the place is valid and initialised for as long as the slot lives, and changed only through `&mut self`: the file is ours alone.
        // Any bits are a block.
        unsafe { self.block.as_ref() }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut Block {
        // SAFETY: as above; `&mut self` is the only way to it.
        unsafe { self.block.as_mut() }
    }
}
