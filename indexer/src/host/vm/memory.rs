//! Bytes of a VM's pages, for whoever hashes what he gets: the memory itself is its tracker's.

use std::{io::IoSliceMut, sync::PoisonError};

use super::{Memory, Vm};
use crate::units::PageRange;

impl Vm {
    /// Copies the bytes of pages in a row as they are now; `None` if they cannot be read, or are not all of one region.
    pub(crate) fn read_run(&self, run: PageRange, into: &mut [u8]) -> Option<()> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let (range, memory) = memory.iter().find(|(range, _)| range.contains(&run.start))?;
        memory.read(run.start - range.start..run.end - range.start, into).ok()
    }

    /// Copies pages in a row from `first` on, each into its own buffer, as far as that goes.
    pub(in crate::host) fn read_scattered(&self, first: u32, into: &mut [IoSliceMut<'_>]) {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let mut page = first;
        let mut left = into;
        while !left.is_empty() {
            let Some((range, memory)) = memory.iter().find(|(range, _)| range.contains(&page)) else {
                return;
            };
            let (here, rest) = left.split_at_mut(left.len().min((range.end - page) as usize));
            let count = here.len() as u32;
            // The other pages are not to suffer from one that cannot be read.
            if memory.read_scattered(page - range.start, here).is_err() {
                for (page, buffer) in (page - range.start..).zip(here) {
                    let _ = memory.read(page..page + 1, buffer);
                }
            }
            page += count;
            left = rest;
        }
    }

    pub(crate) fn set_memory(&self, memory: Memory) {
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = memory;
    }
}
