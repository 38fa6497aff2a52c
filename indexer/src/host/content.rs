//! Where content on this host can come from: one small interface for VMs that run here, VMs that are coming, and what VMs left behind.

use std::io::IoSliceMut;

use memdex_wire::{Fingerprint, page::PageState};

use super::Vm;
use crate::{fingerprint::Page, map::MapId};

/// Pages that may be read, by the numbers that the reverse index knows them by.
///
/// Nothing here is to be believed: whoever uses bytes hashes them first.
pub(crate) trait ContentSource: std::fmt::Debug + Send + Sync {
    /// What the page held when it was last looked at; `None` if that is not known, or if it has been written since, or is zeros.
    /// Whether it is settled does not matter here.
    fn content(&self, page: u32) -> Option<Fingerprint>;

    /// Calls `each` with those of `places` that hold the content asked for there: number in `asked`, and page. The same as asking for each one, for the price of one
    /// lock.
    fn hold(&self, asked: &[Fingerprint], places: &[(u32, u32)], each: &mut dyn FnMut(u32, u32)) {
        for (number, page) in places {
            if self.content(*page).as_ref() == Some(&asked[*number as usize]) {
                each(*number, *page);
            }
        }
    }

    /// Copies the page's bytes as they are now; `None` if it cannot be read.
    fn read(&self, page: u32, into: &mut Page) -> Option<()>;

    /// The same for pages in a row from `first` on, each into its own buffer. What cannot be read is left as it is: whoever uses it hashes it.
    fn read_run(&self, first: u32, into: &mut [IoSliceMut<'_>]) {
        for (page, buffer) in (first..).zip(into) {
            if let Some(buffer) = buffer.first_chunk_mut() {
                let _ = self.read(page, buffer);
            }
        }
    }

    /// Pages that have a fingerprint, at most.
    fn contents(&self) -> u64;

    /// Calls `each` with every page that has a fingerprint, whether it has been written since or not.
    fn each_content(&self, each: &mut dyn FnMut(u32, &Fingerprint));

    /// Names the source in the reverse index.
    fn map_id(&self) -> MapId;
}

impl ContentSource for Vm {
    fn content(&self, page: u32) -> Option<Fingerprint> {
        let map = self.map();
        if page >= map.pages() {
            return None;
        }
        let view = map.page(page);
        view.fingerprint.filter(|_| view.held == PageState::Current)
    }

    fn hold(&self, asked: &[Fingerprint], places: &[(u32, u32)], each: &mut dyn FnMut(u32, u32)) {
        let map = self.map();
        for (number, page) in places {
            if map.holds(*page, &asked[*number as usize]) {
                each(*number, *page);
            }
        }
    }

    fn read(&self, page: u32, into: &mut Page) -> Option<()> {
        Self::read_run(self, page..page + 1, into)
    }

    fn read_run(&self, first: u32, into: &mut [IoSliceMut<'_>]) {
        self.read_scattered(first, into);
    }

    fn contents(&self) -> u64 {
        let counts = self.map().held_counts();
        counts.total - counts.zero - counts.absent
    }

    fn each_content(&self, each: &mut dyn FnMut(u32, &Fingerprint)) {
        self.snapshot().fingerprints().for_each(|(page, fingerprint)| each(page, &fingerprint));
    }

    fn map_id(&self) -> MapId {
        Vm::map_id(self)
    }
}
