//! Going on where an earlier daemon stopped: which of the pages it knew still are what they were.
//!
//! Owns the judgement. The map is in a file ([`crate::map::MapFolder`]) and the write protection in the VMM's page table, and both outlive the daemon.
//!
//! # What has to hold
//!
//! A page that the dead daemon showed as known had been armed before it was read, and every write since then either was seen (then the file says stale: the byte is stored
//! before the page is armed again) or is in the page table. So the page is what the file says if *it has been armed all the time* and *is not seen as written now*, with three
//! provisos: that nobody armed it anew in between, that it was not thrown away, and that nobody wrote past the page table.
//!
//! - **Armed all the time.** Its mapping is registered with the dead daemon's own userfaultfd: that is still in the VMM under its number and the inode that only it has
//!   ([`userfault::Token`]), the whole region passes PM_SCAN_CHECK_WPASYNC *before* anything is registered, and registering it once more with that
//!   userfaultfd is not refused (another one would be: EBUSY). A mapping that is removed, moved or replaced loses its registration, execve(2) and exit close the
//!   userfaultfd, and a process forked from the VMM has another pid. And the region is, in all that discovery knows of it, the one that the file names.
//! - **Nobody armed it anew.** Whoever arms pages without going on with this file does so with a userfaultfd of his own and closes this one ([`userfault::attach`]), so the
//!   token is gone. Two at once are kept apart by the claim, which is taken first.
//! - **Not seen as written.** Positively protected, as the audit wants it: a page without an entry in the page table is not believed.
//! - **Not thrown away.** A hole shows in the file. A hole that was filled since (by a read, by khugepaged) shows nowhere: the page is there again, all zero, and still protected. So each page with a fingerprint
//!   is looked at: by a discard it can only have become zero, and the look ends at the first byte that is not, which takes a cache miss.
//!   A discard that is under way when the hooks are attached says at its end that anything may have been discarded. The looks come after the hooks.
//! - **Nobody wrote past the page table.** Direct I/O: see [`crate::watch::unsettled`]. Devices and other processes: as long as there was a doubt, or something that was not explained, the
//!   file says that it is not to be trusted, and the VM is read anew. Somebody who maps the RAM file and lets go of it again while no daemon looks is not
//!   noticed, as little as between two looks of discovery; the content audit is the net under both.
//!
//! What the dead daemon was doing does not matter: a page that it had armed, read or hashed and not published is stale in the file; marks that it had not taken tell of writes that
//! the page table shows too, or of discards.
//!
//! # How it is done
//!
//! All pages of the file begin as *inherited*: shown as stale, and queued like everything that is stale. When their turn comes they are not armed and hashed, but *confirmed*: bytes, then page
//! table, then marks, in the order of every batch, and published with what is known of them. What cannot be confirmed is stale, and is read.

use std::{sync::Arc, time::Instant};

use roaring::RoaringBitmap;

use super::{Lost, Tracker, attach_protection, region::Watched, settle::with_marks, trouble::Trouble};
use crate::{
    host::Shared,
    map::{Change, DirectIo, Layout, Left, Owner, PageMap, monotonic_seconds},
    vm::{descriptor::VmDescriptor, no_direct_io},
    watch::{
        claim::Claim,
        pagemap::Pagemap,
        protection::Protection,
        protocol::{self, Inherited},
        queue::runs,
        unsettled::SOON,
        userfault::{self, UserFault},
    },
};

/// Attaches to a VM: with what an earlier daemon left of it, if that can be gone on with.
pub(super) fn begin(
    shared: &Shared,
    descriptor: &VmDescriptor,
) -> (Option<Claim>, Result<Protection, String>, Option<Left>) {
    let process = descriptor.process;
    let found = shared
        .options
        .maps
        .as_ref()
        .filter(|_| shared.options.tracker.write_protect && Pagemap::probe().is_ok());
    let Some(maps) = found else {
        let (claim, protection) = attach_protection(process, shared);
        return (claim, protection, None);
    };
    let claim = match Claim::take(process) {
        Ok(claim) => claim,
        Err(error) => return (None, Err(error.to_string()), None),
    };
    let left = match maps.find(process) {
        None => None,
        Some(left) => match left.and_then(|left| take_up(descriptor, left)) {
            Ok(going_on) => Some(going_on),
            Err(reason) => {
                tracing::info!(vm = %process, reason, "what an earlier daemon left of this VM is of no use; reading it anew");
                None
            }
        },
    };
    if let Some((userfault, left)) = left {
        return (Some(claim), Ok(Protection::UserFault(userfault)), Some(left));
    }
    (Some(claim), Protection::attach(process, &shared.hooks), None)
}

fn take_up(descriptor: &VmDescriptor, left: Left) -> Result<(UserFault, Left), String> {
    if !left.trusted {
        return Err("its tracking was advisory".to_owned());
    }
    if let Some(doubt) = descriptor.doubts.first() {
        return Err(format!("its tracking is advisory: {doubt}"));
    }
    let token = left.owner.token.ok_or("its pages were not protected")?;
    let userfault = userfault::reattach(descriptor.process, token).map_err(|error| error.to_string())?;
    let userfault = userfault.ok_or("the userfaultfd it was made with is no longer in the VMM")?;
    Ok((userfault, left))
}

/// Seconds that discovery's look at a VM may have begun before its tracker does.
const LOOK: u32 = 2;
/// Seconds by which a look that began after the last page was published is written down as later: times are whole seconds, and one is allowed for
/// being late.
const AFTER_ALL: u32 = 2;
/// Pages that the reverse index is told of at once.
const INDEXED: usize = 4096;

impl Tracker {
    /// Begins with a map in which nothing is known.
    pub(super) fn begin_anew(&mut self) {
        // Without the claim the file may be that of a daemon that runs.
        let maps = self.shared.options.maps.as_ref().filter(|_| self.claim.is_some());
        let store = maps.and_then(|maps| {
            // Also if there is no room for a new one.
            maps.remove(self.process);
            let store = maps.create(self.process);
            let failed = |error| {
                tracing::warn!(
                    vm = %self.vm.id(), %error,
                    "this VM's map cannot be kept in the runtime folder: the VM will be read anew after a restart"
                );
            };
            store.map_err(failed).ok()
        });
        let layout = Arc::new(Layout::of(&self.descriptor.regions));
        *self.vm.map_mut() = PageMap::on(store, layout);
        self.note_direct_io();
        self.lay_out(0);
    }

    /// Goes on with the map that an earlier daemon left.
    pub(super) fn go_on(&mut self, left: Left) {
        let now = Instant::now();
        let layout = Arc::new(Layout::of(&self.descriptor.regions));
        let same = left.owner.same_regions(&self.owner());
        let changed = same < left.owner.regions() || same < self.descriptor.regions.len();
        if left.direct_io.possible {
            self.unsettled.was_possible(now);
        }
        // Before anything is registered: that would make good what is not.
        let mut written = RoaringBitmap::new();
        for (index, (region, place)) in self.descriptor.regions.iter().zip(layout.regions()).enumerate() {
            let mut found = Vec::new();
            let intact = index < same && self.pagemap.written(region.start..region.end(), &mut found).is_ok();
            let protection = self.protection.as_ref().map_err(String::as_str);
            let watched = Watched::open(self.process, region.clone(), place.first_page, protection);
            if intact && watched.armed() {
                found.iter().for_each(|addresses| {
                    written.insert_range(watched.pages_at(addresses));
                });
            } else {
                written.insert_range(watched.range());
            }
            self.regions.push(watched);
        }
        let proven = self.proven(left.direct_io);
        // The next daemon may come before this one has looked again.
        let looked = if proven {
            Some(monotonic_seconds().saturating_sub(LOOK))
        } else {
            // Not later than what this daemon publishes: see `AFTER_ALL`.
            left.direct_io.none_look.map(|looked| looked.min(monotonic_seconds()))
        };
        left.store.set_direct_io(DirectIo { none_look: looked, ..left.direct_io });
        let looked = left.direct_io.none_look;
        // The clock is read in whole seconds, and some milliseconds late.
        let in_doubt =
            |published| !proven && published > 0 && looked.is_none_or(|looked| published + 1 >= looked);
        let mut map = PageMap::resume(left, Arc::clone(&layout), in_doubt);
        protocol::stale(&mut map, &written);
        let kept = self.regions.get(..same).and_then(<[_]>::last).map_or(0, |last| last.range().end);
        if changed {
            protocol::renumber(&mut map, &mut self.queue, layout, kept);
        }
        tracing::info!(
            vm = %self.vm.id(), known = map.inherited_pages(),
            stale = u64::from(map.pages()) - map.inherited_pages(),
            "going on with the map that an earlier daemon left"
        );
        self.unseen.insert_range(0..map.pages());
        for unreadable in self.regions.iter().filter(|watched| !watched.readable()) {
            self.unseen.remove_range(unreadable.range());
        }
        // First the map, then the index, as always: see [`crate::picture::log`].
        let snapshot = map.snapshot();
        *self.vm.map_mut() = map;
        let mut known = snapshot.fingerprints().map(|(page, fingerprint)| Change {
            page,
            before: None,
            after: Some(fingerprint),
        });
        loop {
            let some: Vec<Change> = known.by_ref().take(INDEXED).collect();
            if some.is_empty() {
                break;
            }
            self.follow(&some);
        }
        drop(known);
        drop(snapshot);
        self.watch_marks();
        protocol::renumbered(&self.vm.map(), &mut self.queue, 0);
        // A fault that was taken before the hooks were there may be resolved only now.
        self.full_scan.want();
        self.update_status();
        self.share_memory();
        self.seal();
    }

    /// Whether no direct I/O can have arrived unseen in what the earlier daemon published as settled: its last look and the first one of this daemon found none, and
    /// they are as good as one after the other.
    fn proven(&self, direct_io: DirectIo) -> bool {
        let soon =
            direct_io.none_look.is_some_and(|looked| monotonic_seconds().saturating_sub(looked) <= SOON);
        self.options.settle.is_zero() || soon && self.descriptor.direct_io.is_none()
    }

    /// Those of `pages`, which lie in one region, that can be confirmed instead of being read.
    pub(super) fn inherited(&self, region: usize, pages: &RoaringBitmap) -> RoaringBitmap {
        if !self.regions[region].armed() || self.doubted() {
            return RoaringBitmap::new();
        }
        self.vm.map().inherited(pages)
    }

    /// Looks whether what an earlier daemon knew of these pages of one region still holds. Returns those for which it does not; they are stale.
    pub(super) fn confirm(&mut self, region: usize, pages: &RoaringBitmap) -> Result<RoaringBitmap, Lost> {
        let seen = match self.look_at_inherited(region, pages) {
            Ok(seen) => seen,
            Err(trouble) => {
                self.trouble(region, trouble)?;
                self.stale(pages);
                return Ok(pages.clone());
            }
        };
        let mut map = self.vm.map_mut();
        let (failed, unsettled) = protocol::confirm(&mut map, &mut self.queue, pages, &seen);
        let confirmed = pages - &failed;
        // Whoever sees these pages known sees the figure too.
        self.vm.counters.pages_picked_up.add(confirmed.len());
        drop(map);
        for run in runs(&unsettled) {
            self.unsettled.inherited(run);
        }
        self.looks.have_read(&confirmed);
        self.unseen -= &confirmed;
        self.cost.inherited(&(&confirmed & &seen.armed));
        self.note_progress();
        if self.vm.map().inherited_pages() == 0 {
            tracing::info!(
                vm = %self.vm.id(), known = self.vm.counters.pages_picked_up.get(),
                "what an earlier daemon knew of this VM has been looked at"
            );
        }
        Ok(failed)
    }

    /// Bytes, page table, marks: in this order.
    fn look_at_inherited(&self, region: usize, pages: &RoaringBitmap) -> Result<Inherited, Trouble> {
        let watched = &self.regions[region];
        let mut seen = Inherited::default();
        let Some(memory) = watched.memory.clone().filter(|_| watched.readable()) else { return Ok(seen) };
        let mut data = Vec::new();
        runs(pages).try_for_each(|run| memory.data(&self.pagemap, watched.relative(&run), &mut data))?;
        for run in data {
            seen.data.insert_range(watched.first_page + run.start..watched.first_page + run.end);
        }
        let mut known: RoaringBitmap = {
            let map = self.vm.map();
            pages.iter().filter(|page| map.page(*page).fingerprint.is_some()).collect()
        };
        known &= &seen.data;
        seen.zero = self.zero_pages(region, &known)?;

        self.protection(region, pages, &mut seen.armed, &mut seen.open)?;
        seen.marked = with_marks(self.marks.as_ref(), pages);
        Ok(seen)
    }

    /// What arms page by page, and leaves its notes to the next daemon.
    fn userfault(&self) -> Option<&UserFault> {
        match &self.protection {
            Ok(Protection::UserFault(userfault)) => Some(userfault),
            Ok(Protection::SoftDirty(..)) | Err(_) => None,
        }
    }

    fn owner(&self) -> Owner {
        let token = self.userfault().and_then(UserFault::token);
        Owner::new(self.vm.name(), self.process, token, &self.descriptor.regions)
    }

    /// Says in the file what the map is about: from here on the next daemon may go on with it.
    pub(super) fn seal(&self) {
        let map = self.vm.map();
        if map.store().is_some() {
            map.seal(&self.owner());
        }
    }

    /// Says in the file whether what is shown as known was watched without a doubt.
    pub(super) fn note_trust(&self) {
        if let Some(store) = self.vm.map().store() {
            store.set_trusted(self.userfault().is_some() && !self.doubted() && !self.aside);
        }
    }

    /// Says in the file what is known of direct I/O.
    pub(super) fn note_direct_io(&self) {
        if let Some(store) = self.vm.map().store() {
            let looked = self.vm.direct_io_looks().none;
            // Rather too early than too late: what was published since is not proven.
            let seconds = |at: Instant| monotonic_seconds().saturating_sub(at.elapsed().as_secs() as u32 + 1);
            store.set_direct_io(DirectIo {
                possible: !self.unsettled.at_once(),
                none_look: looked.map(seconds),
            });
        }
    }

    /// At the end: whether map and protection are left to the next daemon. If not, the map is removed.
    pub(super) fn leave_behind(&self) -> bool {
        let map = self.vm.map();
        let Some(store) = map.store().filter(|store| store.lasts()) else { return false };
        let left = self.shared.ending() && self.userfault().is_some();
        if !left {
            store.remove();
        } else if self.unsettled.at_once() && no_direct_io(self.process) {
            // Nothing is published any more: all that was is proven, however late the next daemon comes.
            let looked = Some(monotonic_seconds() + AFTER_ALL);
            store.set_direct_io(DirectIo { possible: false, none_look: looked });
        }
        left
    }
}
