//! The reverse index: which places of this host hold a given content.
//!
//! # A hint that is always checked
//!
//! An entry says "map M, page P probably holds content with this tag". Whoever looks something up checks the place in
//! the map itself: it counts only if that page is `current` there with exactly the fingerprint asked for. So an entry may
//! be out of date without doing harm, pages that become stale need no work here, and an entry need not hold the fingerprint, which stands in the map.
//!
//! # How small an entry is
//!
//! A [tag](TAG) has 37 bits. Three of them choose the shard, some thirteen more the bucket, and up to eight more cost about a bit and a half however many they are ([`cell`]); so two bytes of a tag are written down. A place is the
//! number of a page among all pages of the host ([`places`]): three bytes up to 64 GiB of guests, four up to 16 TiB, five up to 4 PiB, chosen for each cell anew. Cells are as large as what is in them ([`cells`]), and
//! there are as many as have to be ([`table`]). So an entry takes 5.8 bytes at 4 Mi entries, and about one more where places take four.
//!
//! | for 4 Mi entries | bytes each | grows by |
//! |---|---|---|
//! | hash table of tag, map and page (twelve bytes) | 14.9–26, 31 after every entry has changed once | doubling: three times the memory for a moment |
//! | buckets of a cache line, ten entries of six bytes | 7.1 at 90 % load | a bucket, but then those not split yet are twice as full |
//! | quotient filter, 24 bits of place | 5.7 at 93 % load | doubling |
//! | **cells of varying size, linear hashing** | **5.8, 6.2 after every entry has changed once** | **a bucket** |
//!
//! What it costs is time: a single insertion or look-up takes two to three times as long as in the hash table (some hundred nanoseconds more). Who has many changes to tell [follows](ContentIndex::follow) them at once.
//!
//! Contents that share a tag (one of 16 Mi shares its tag with probability 1.2·10⁻⁴, of 268 Mi with 2·10⁻³) are taken for one: the going of one is not told while the other is there, and a look-up checks one place more.
//!
//! # What a hostile guest can do
//!
//! It chooses the content of its pages and so, with some work, pages whose fingerprints agree in a few bits. Tags are
//! therefore made with a random multiplier that never leaves this process, of which buckets take the high bits. Pages that are really the same (a guest
//! can fill its memory with one pattern) would make one endless chain: at most [`SAME_TAG`] entries with one tag
//! are held, further ones are counted and left out. If all the places held go stale while one left out still has the
//! content, a lookup misses it, and the content crosses the wire once more than needed: a cost, never a wrong byte. A cell has at most 4 KiB, ten times the average; what would make it larger is counted
//! and left out as well, and the shard says of every content from then on that there may be more places of it.

mod cell;
mod cells;
mod marks;
mod places;
mod table;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use memdex_wire::{Fingerprint, picture::Change};

use super::Change as PageChange;
use crate::picture::log::ChangeLog;
use places::Places;
use table::{Inserted, Table};

/// Names one VM's map in the index. Never used twice while the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapId(pub u32);

/// A page that probably holds a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which VM's map.
    pub map: MapId,
    /// Which page of it.
    pub page: u32,
}

/// Figures about the index.
#[derive(Debug, Clone, Copy, Default)]
pub struct IndexStatistics {
    /// Entries held.
    pub entries: u64,
    /// Bytes allocated for them.
    pub bytes: u64,
    /// Places left out because [`SAME_TAG`] others with the same tag were held, or because there was no room.
    pub left_out: u64,
}

/// Most tags of a shard of which it is remembered that places were left out, or a sixteenth of its entries if that is more (there are [`SAME_TAG`] entries of each such tag, mostly);
/// beyond that places may have been left out of every tag.
const CROWDED: usize = 1 << 12;
/// Most entries with one tag.
const SAME_TAG: usize = 32;
/// Bits that choose the shard. Each has memory for half a block of every size of cells in use, so they are no more than keep some dozen threads apart.
const SHARD: u32 = 3;
/// Bits of a tag.
const TAG: u32 = SHARD + cell::BITS;
/// Buckets that are merged before others get a turn.
const AT_ONCE: usize = 256;

/// Bytes that are worth the time that it takes to give them back to the system.
const WORTH: u64 = 1 << 20;

/// Changes that are sorted by shard, and steps that are taken, at once.
const FOLLOWED: usize = 1024;
const FETCHED: usize = 16;

/// A content has come to a page, or gone.
#[derive(Debug)]
struct Step {
    prefix: u64,
    tag: u64,
    page: u32,
    come: bool,
}

/// Working memory of [`ContentIndex::candidates_of`].
#[derive(Debug, Default)]
pub struct Sorter {
    /// Numbers and tags of what is asked of each shard.
    asked: [Vec<(u32, u64)>; 1 << SHARD],
}

#[derive(Debug)]
struct Shard {
    table: Table,
    places: Places,
    /// Of how many places of each tag it is not known that they have gone, of those that were left out.
    crowded: HashMap<u64, u32>,
    /// Places were left out for want of room, of whatever tag.
    short: bool,
}

impl Shard {
    fn leave_out(&mut self, tag: u64) {
        let full = self.crowded.len() >= CROWDED.max(self.table.len() / 16);
        match self.crowded.entry(tag) {
            Entry::Occupied(mut places) => *places.get_mut() = places.get().saturating_add(1),
            Entry::Vacant(_) if full => self.short = true,
            Entry::Vacant(room) => {
                room.insert(1);
            }
        }
    }

    /// A place that is not known holds a content no more. Returns whether it had been left out.
    fn has_gone(&mut self, tag: u64) -> bool {
        let Entry::Occupied(mut places) = self.crowded.entry(tag) else { return false };
        *places.get_mut() -= 1;
        if *places.get() == 0 {
            places.remove();
        }
        true
    }

    /// Whether there may be places that are not known.
    fn leaves_out(&self, tag: u64) -> bool {
        self.short || self.crowded.contains_key(&tag)
    }
}

/// Fingerprint → places. Sharded, so that trackers of many VMs and lookups do not wait for one another.
#[derive(Debug)]
pub struct ContentIndex {
    /// Std mutexes: held for some hundred nanoseconds, some tenths of a millisecond when a map is forgotten; never across a system call or an await.
    shards: Vec<Mutex<Shard>>,
    multiplier: u64,
    left_out: AtomicU64,
    /// For other hosts that want to know what there is.
    changes: Arc<ChangeLog>,
}

impl ContentIndex {
    /// An empty index with tags of its own.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn new() -> Result<Self, getrandom::Error> {
        let shard = |_| {
            Mutex::new(Shard {
                table: Table::new(),
                places: Places::default(),
                crowded: HashMap::new(),
                short: false,
            })
        };
        Ok(Self {
            shards: (0..1 << SHARD).map(shard).collect(),
            multiplier: getrandom::u64()? | 1,
            left_out: AtomicU64::new(0),
            changes: Arc::new(ChangeLog::new(getrandom::u64()?)),
        })
    }

    /// What came and went.
    #[must_use]
    pub fn changes(&self) -> &Arc<ChangeLog> {
        &self.changes
    }

    /// Says what the pages of a map hold now: [`remove`](Self::remove) and [`insert`](Self::insert) for all of them, in order for each content, and in less time, because what they
    /// read is fetched from memory for some of them at once.
    pub fn follow(&self, map: MapId, changes: &[PageChange]) {
        let mut steps: [Vec<Step>; 1 << SHARD] = Default::default();
        for changes in changes.chunks(FOLLOWED) {
            for PageChange { page, before, after } in changes {
                for (fingerprint, come) in [(before, false), (after, true)] {
                    let Some(fingerprint) = fingerprint else { continue };
                    let (shard, tag) = self.tag(fingerprint.prefix());
                    steps[shard].push(Step { prefix: fingerprint.prefix(), tag, page: *page, come });
                }
            }
            for (shard, steps) in self.shards.iter().zip(&mut steps) {
                for steps in steps.chunks(FETCHED) {
                    let mut shard = lock(shard);
                    steps.iter().for_each(|step| shard.table.touch(step.tag));
                    for step in steps {
                        let place = Place { map, page: step.page };
                        if step.come {
                            self.come(&mut shard, step.tag, step.prefix, place);
                        } else {
                            self.go(&mut shard, step.tag, step.prefix, place);
                        }
                    }
                }
                steps.clear();
            }
        }
    }

    /// Says that a place now holds `fingerprint`.
    pub fn insert(&self, fingerprint: &Fingerprint, place: Place) {
        let (mut shard, tag) = self.shard(fingerprint.prefix());
        self.come(&mut shard, tag, fingerprint.prefix(), place);
    }

    /// Says that a place no longer holds `fingerprint`.
    pub fn remove(&self, fingerprint: &Fingerprint, place: Place) {
        let (mut shard, tag) = self.shard(fingerprint.prefix());
        self.go(&mut shard, tag, fingerprint.prefix(), place);
    }

    fn come(&self, shard: &mut Shard, tag: u64, prefix: u64, place: Place) {
        self.changes.note(Change::new(prefix, true));
        let number = shard.places.give(place);
        match number.map_or(Inserted::Full, |number| shard.table.insert(tag, number, SAME_TAG)) {
            Inserted::There => return,
            Inserted::Crowded => shard.leave_out(tag),
            Inserted::Full => shard.short = true,
        }
        self.left_out.fetch_add(1, Relaxed);
    }

    fn go(&self, shard: &mut Shard, tag: u64, prefix: u64, place: Place) {
        let Some(number) = shard.places.number(place) else { return };
        let last = match shard.table.remove(tag, number) {
            Some(more) => !more,
            // It may have been left out, and be the last one of those.
            None => shard.has_gone(tag) && !shard.table.contains(tag),
        };
        // Where places were left out, the content may be at one of them: nobody is told that it has gone.
        if last && !shard.leaves_out(tag) {
            self.changes.note(Change::new(prefix, false));
        }
    }

    /// Appends the places that probably hold a fingerprint with this [prefix](Fingerprint::prefix): check each in its map. Returns whether there may be places that
    /// were left out.
    pub fn candidates(&self, prefix: u64, places: &mut Vec<Place>) -> bool {
        let (shard, tag) = self.shard(prefix);
        places.extend(shard.table.places(tag).filter_map(|number| shard.places.place(number)));
        shard.leaves_out(tag)
    }

    /// The same for many prefixes, a few thousand: calls `each` with the number of a prefix and a place, in any order of prefixes. What has to come from memory comes for some of
    /// them at the same time.
    pub fn candidates_of(
        &self,
        prefixes: impl Iterator<Item = u64>,
        sorter: &mut Sorter,
        mut each: impl FnMut(u32, Place),
    ) {
        for (number, prefix) in prefixes.enumerate() {
            let (shard, tag) = self.tag(prefix);
            sorter.asked[shard].push((number as u32, tag));
        }
        for (shard, asked) in self.shards.iter().zip(&mut sorter.asked) {
            for asked in asked.chunks(FETCHED) {
                let shard = lock(shard);
                asked.iter().for_each(|(_, tag)| shard.table.touch(*tag));
                for (number, tag) in asked {
                    let places = shard.table.places(*tag).filter_map(|place| shard.places.place(place));
                    places.for_each(|place| each(*number, place));
                }
            }
            asked.clear();
        }
    }

    /// Whether there may be places that are not known, of any content. Then everything of a map has to be [removed](Self::remove) before it is forgotten: which of them were
    /// of that map is not written down.
    #[must_use]
    pub fn leaves_out(&self) -> bool {
        self.shards.iter().map(lock).any(|shard| shard.short || !shard.crowded.is_empty())
    }

    /// Forgets every place of a map that is known.
    pub fn forget(&self, map: MapId) {
        let before = self.statistics().bytes;
        self.weed(map);
        if before.saturating_sub(self.statistics().bytes) >= WORTH {
            crate::heap::give_back();
        }
    }

    fn weed(&self, map: MapId) {
        for shard in &self.shards {
            let ranges = {
                let Shard { table, places, .. } = &mut *lock(shard);
                // Who still tells of the map, though it is forgotten, gets other numbers than those that go.
                let Some(ranges) = places.leave(map) else { continue };
                table.walk();
                ranges
            };
            // Some at a time: all of a shard take long on a large host.
            let mut next = Some(0);
            while let Some(from) = next {
                let Shard { table, places, .. } = &mut *lock(shard);
                next = table.weed(from, |number| places.place(number).is_some_and(|place| place.map != map));
            }
            {
                let Shard { places, crowded, short, .. } = &mut *lock(shard);
                places.take_back(ranges);
                // Of no map nothing is left out.
                if places.is_empty() {
                    (*crowded, *short) = (HashMap::new(), false);
                }
                if crowded.capacity() > 4 * crowded.len() {
                    crowded.shrink_to_fit();
                }
            }
            while !lock(shard).table.shrink(AT_ONCE) {}
        }
    }

    /// Figures about the index.
    #[must_use]
    pub fn statistics(&self) -> IndexStatistics {
        let mut statistics = IndexStatistics { left_out: self.left_out.load(Relaxed), ..Default::default() };
        for shard in &self.shards {
            let shard = lock(shard);
            statistics.entries += shard.table.len() as u64;
            statistics.bytes += (shard.table.bytes() + shard.places.bytes()) as u64;
        }
        statistics
    }

    fn shard(&self, prefix: u64) -> (MutexGuard<'_, Shard>, u64) {
        let (shard, tag) = self.tag(prefix);
        (lock(&self.shards[shard]), tag)
    }

    /// The shard of a content, and what its tag is there.
    fn tag(&self, prefix: u64) -> (usize, u64) {
        // Changes are told without the lowest bit. The first bits that are used are the highest ones: those that no choice of prefixes makes alike.
        let tag = (prefix & !1).wrapping_mul(self.multiplier).reverse_bits() & ((1 << TAG) - 1);
        (tag as usize & ((1 << SHARD) - 1), tag >> SHARD)
    }
}

/// A shard is only ever left in a usable state, so a panic of another holder does not matter.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
