//! Memory that is not what it was: the VMM mapped something else there, took it away, or ended.

use std::sync::Arc;

use super::{Lost, Tracker, region::Watch};
use crate::{
    memory::{MemoryError, RegionMemory},
    watch::{pagemap::ScanError, protocol},
};

/// Why a batch could not be settled.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The VM is gone.
    Lost(Lost),
    /// This region's memory is gone or cannot be read.
    Region(MemoryError),
    /// Something else is mapped there now.
    NotWatched,
}

impl From<MemoryError> for Trouble {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Gone => Self::Lost(Lost::ended()),
            other => Self::Region(other),
        }
    }
}

impl From<ScanError> for Trouble {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::NotWatched => Self::NotWatched,
            other => Self::Lost(other.into()),
        }
    }
}

impl Tracker {
    /// Draws the conclusion: the VM is given up, or the region is opened anew or left alone.
    pub(super) fn trouble(&mut self, region: usize, trouble: Trouble) -> Result<(), Lost> {
        match trouble {
            Trouble::Lost(lost) => return Err(lost),
            Trouble::Region(error) => self.region_lost(region, &error),
            Trouble::NotWatched => self.region_not_watched(region)?,
        }
        Ok(())
    }

    /// Whether the userfaultfd still covers a region: false after the VMM mapped something else there.
    pub(super) fn userfault_works(&self, region: usize) -> bool {
        let watched = &self.regions[region];
        let first = watched.first_page..watched.first_page + 1;
        !matches!(
            self.pagemap.written(watched.addresses(&first), &mut Vec::new()),
            Err(ScanError::NotWatched)
        )
    }

    /// The VMM mapped something else where a region was: nothing known of it holds.
    pub(super) fn region_not_watched(&mut self, region: usize) -> Result<(), Lost> {
        let range = self.regions[region].range();
        self.vm.counters.regions_remapped.add(1);
        let epoch = &mut self.regions[region].epoch;
        let newly = protocol::mapped_anew(&mut self.vm.map_mut(), epoch, &range);
        self.vm.counters.pages_gone_stale.add(newly);
        self.note_mapped_anew(range.clone());
        self.whole.spend_runs(std::slice::from_ref(&range));
        let watched = &self.regions[region];
        let renewed = RegionMemory::open(self.process, &watched.region)
            .map(Arc::new)
            .map_err(|error| error.to_string())
            .and_then(|memory| {
                let protection = self.protection.as_ref().map_err(Clone::clone)?;
                let addresses = watched.region.start..watched.region.end();
                protection.register(addresses.clone()).map_err(|error| error.to_string())?;
                // A part may be missing. To call that watched would bring us here again and again.
                protection.watched(&self.pagemap, addresses).map_err(|error| error.to_string())?;
                // It may have changed once more before it was registered.
                if !memory.still_mapped(self.process, &watched.region) {
                    return Err(MemoryError::Vanished.to_string());
                }
                Ok(memory)
            });
        let watched = &mut self.regions[region];
        match renewed {
            Ok(memory) => {
                let name = &watched.region.name;
                tracing::warn!(vm = %self.vm.id(), region = name, "the VMM mapped this region anew; reading all of it again");
                watched.memory = Some(memory);
                self.queue.ready_run(range);
            }
            Err(reason) => {
                // The VMM is ending, or took the region away: the next sweep says which.
                tracing::debug!(vm = %self.vm.id(), region = watched.region.name, reason, "a region is gone");
                watched.watch = Watch::Unreadable(reason);
                self.unseen.remove_range(range);
            }
        }
        self.update_status();
        self.share_memory();
        Ok(())
    }

    /// A region's memory went away while it was read. Discovery will say what is there now.
    fn region_lost(&mut self, region: usize, error: &MemoryError) {
        let watched = &mut self.regions[region];
        tracing::warn!(vm = %self.vm.id(), region = watched.region.name, %error, "lost a region");
        watched.lost(error);
        let range = watched.range();
        self.stale_run(&range);
        self.unseen.remove_range(range);
        self.update_status();
        self.share_memory();
    }
}
