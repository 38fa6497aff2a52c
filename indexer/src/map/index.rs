//! The reverse index: which places of this host hold a given content.
//!
//! # A hint that is always checked
//!
//! An entry says "map M, page P probably holds content with this tag". Whoever looks something up checks the place in
//! the map itself: it counts only if that page is `current` there with exactly the fingerprint asked for. So an entry may
//! be out of date without doing harm, pages that become stale need no work here, and an entry can be as small as twelve
//! bytes: it need not hold the fingerprint, which stands in the map.
//!
//! # What a hostile guest can do
//!
//! It chooses the content of its pages and so, with some work, pages whose fingerprints agree in a few bits. Tags are
//! therefore made with a random multiplier that never leaves this process. Pages that are really the same (a guest
//! can fill its memory with one pattern) would make one endless chain: at most [`SAME_TAG`] entries with one tag
//! are held, further ones are counted and left out. If all the places held go stale while one left out still has the
//! content, a lookup misses it, and the content crosses the wire once more than needed: a cost, never a wrong byte.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hashbrown::{HashTable, hash_table};
use memdex_wire::{Fingerprint, picture::Change};

use crate::picture::log::ChangeLog;

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
    /// Places left out because [`SAME_TAG`] others with the same tag were held.
    pub left_out: u64,
}

/// Most entries with one tag.
const SAME_TAG: usize = 32;
/// Not a power of two: guest memory nearly always is one, and tables double when they are 7/8 full. With 64 shards a VM whose
/// pages all differ would fill each table just past a doubling, to 50 %; with 38 it is 84 %, four standard deviations below the doubling.
const SHARDS: usize = 38;

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u32,
    map: u32,
    page: u32,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashTable<Entry>,
    /// Tags of which places were left out, as long as any place with the tag is known.
    crowded: HashSet<u32>,
}

/// Entries that memory is asked for at the same time.
const AHEAD: usize = 32;

/// Working memory of [`ContentIndex::candidates_of`].
#[derive(Debug, Default)]
pub struct Sorter {
    by_shard: Vec<(u16, u32)>,
    sorted: Vec<(u32, u32)>,
}

/// Fingerprint → places. Sharded, so that trackers of many VMs and lookups do not wait for one another.
#[derive(Debug)]
pub struct ContentIndex {
    /// Std mutexes: held for some hundred nanoseconds, never across a system call or an await.
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
        Ok(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
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

    /// Says that a place now holds `fingerprint`.
    pub fn insert(&self, fingerprint: &Fingerprint, place: Place) {
        let (mut shard, tag) = self.shard(fingerprint.prefix());
        self.changes.note(Change::new(fingerprint.prefix(), true));
        let mut same = 0;
        for entry in shard.entries.iter_hash(spread(tag)).filter(|entry| entry.tag == tag) {
            if entry.map == place.map.0 && entry.page == place.page {
                return;
            }
            same += 1;
        }
        if same >= SAME_TAG {
            self.left_out.fetch_add(1, Relaxed);
            shard.crowded.insert(tag);
            return;
        }
        let entry = Entry { tag, map: place.map.0, page: place.page };
        shard.entries.insert_unique(spread(tag), entry, |entry| spread(entry.tag));
    }

    /// Says that a place no longer holds `fingerprint`.
    pub fn remove(&self, fingerprint: &Fingerprint, place: Place) {
        let (mut shard, tag) = self.shard(fingerprint.prefix());
        let same = |entry: &Entry| (entry.tag, entry.map, entry.page) == (tag, place.map.0, place.page);
        if let Ok(entry) = shard.entries.find_entry(spread(tag), same) {
            hash_table::OccupiedEntry::remove(entry);
            if shard.entries.find(spread(tag), |entry| entry.tag == tag).is_none() {
                shard.crowded.remove(&tag);
                self.changes.note(Change::new(fingerprint.prefix(), false));
            }
        }
    }

    /// Appends the places that probably hold a fingerprint with this [prefix](Fingerprint::prefix): check each in its map. Returns whether there may be places that
    /// were left out.
    pub fn candidates(&self, prefix: u64, places: &mut Vec<Place>) -> bool {
        let (shard, tag) = self.shard(prefix);
        let same = shard.entries.iter_hash(spread(tag)).filter(|entry| entry.tag == tag);
        places.extend(same.map(|entry| Place { map: MapId(entry.map), page: entry.page }));
        shard.crowded.contains(&tag)
    }

    /// The same for many prefixes, a few thousand: calls `each` with the number of a prefix and a place, in any order. Each shard is locked once, so what has to
    /// come from memory comes for many at the same time.
    pub fn candidates_of(
        &self,
        prefixes: impl Iterator<Item = u64>,
        sorter: &mut Sorter,
        mut each: impl FnMut(u32, Place),
    ) {
        let Sorter { by_shard, sorted } = sorter;
        by_shard.clear();
        by_shard.extend(prefixes.map(|prefix| self.tag(prefix)));
        // Where each shard's part ends, once all of its numbers have been put there.
        let mut ends = [0u32; SHARDS];
        for (shard, _) in by_shard.iter() {
            ends[usize::from(*shard)] += 1;
        }
        let mut total = 0;
        for end in &mut ends {
            total += std::mem::replace(end, total);
        }
        sorted.clear();
        sorted.resize(by_shard.len(), (0, 0));
        for (number, (shard, tag)) in by_shard.iter().enumerate() {
            let end = &mut ends[usize::from(*shard)];
            sorted[*end as usize] = (number as u32, *tag);
            *end += 1;
        }
        let mut first = 0;
        for (shard, end) in self.shards.iter().zip(ends) {
            let part = &sorted[first as usize..end as usize];
            first = end;
            if part.is_empty() {
                continue;
            }
            let shard = lock(shard);
            // A first look at each, which decides nothing: so the processor does not wait for one before it asks memory for the next.
            for some in part.chunks(AHEAD) {
                let mut firsts = [None; AHEAD];
                for (first, (_, tag)) in firsts.iter_mut().zip(some) {
                    *first = shard.entries.find(spread(*tag), |_| true);
                }
                std::hint::black_box(firsts.iter().flatten().fold(0, |all, entry| all ^ entry.tag));
            }
            for (number, tag) in part {
                for entry in shard.entries.iter_hash(spread(*tag)).filter(|entry| entry.tag == *tag) {
                    each(*number, Place { map: MapId(entry.map), page: entry.page });
                }
            }
        }
    }

    /// Forgets every place of a map.
    pub fn forget(&self, map: MapId) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let Shard { entries, crowded } = &mut *shard;
            entries.retain(|entry| entry.map != map.0);
            entries.shrink_to_fit(|entry| spread(entry.tag));
            crowded.retain(|tag| entries.find(spread(*tag), |entry| entry.tag == *tag).is_some());
        }
    }

    /// Figures about the index.
    #[must_use]
    pub fn statistics(&self) -> IndexStatistics {
        let mut statistics = IndexStatistics { left_out: self.left_out.load(Relaxed), ..Default::default() };
        for shard in &self.shards {
            let shard = lock(shard);
            statistics.entries += shard.entries.len() as u64;
            statistics.bytes += shard.entries.allocation_size() as u64;
        }
        statistics
    }

    fn shard(&self, prefix: u64) -> (MutexGuard<'_, Shard>, u32) {
        let (shard, tag) = self.tag(prefix);
        (lock(&self.shards[usize::from(shard)]), tag)
    }

    /// The shard of a prefix, and its tag there.
    fn tag(&self, prefix: u64) -> (u16, u32) {
        // Changes are told without the lowest bit.
        let mixed = (prefix & !1).wrapping_mul(self.multiplier);
        (((mixed as u32 >> 8) as usize % SHARDS) as u16, (mixed >> 32) as u32)
    }
}

/// A shard is only ever left in a usable state, so a panic of another holder does not matter.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The table takes its bucket from the low bits and its control byte from the high ones.
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn print(n: u8) -> Fingerprint {
        Fingerprint::new(*blake3::hash(&[n]).as_bytes())
    }

    proptest! {
        #[test]
        fn every_place_that_was_told_is_a_candidate(
            steps in prop::collection::vec((any::<bool>(), 0..20u8, 0..3u32, 0..30u32), 0..200)
        ) {
            let index = ContentIndex::new().unwrap();
            let mut model: BTreeMap<u8, BTreeSet<(u32, u32)>> = BTreeMap::new();
            for (insert, content, map, page) in steps {
                let place = Place { map: MapId(map), page };
                let places = model.entry(content).or_default();
                if insert && (places.len() < SAME_TAG || places.contains(&(map, page))) {
                    index.insert(&print(content), place);
                    places.insert((map, page));
                } else if !insert {
                    index.remove(&print(content), place);
                    places.remove(&(map, page));
                }
            }
            index.forget(MapId(2));
            for (content, places) in model {
                let mut found = Vec::new();
                index.candidates(print(content).prefix(), &mut found);
                let mut together = vec![Vec::new(); 3];
                let asked = [print(content ^ 0x80), print(content), print(content)].map(|one| one.prefix());
                index.candidates_of(asked.into_iter(), &mut Sorter::default(), |number, place| {
                    together[number as usize].push(place);
                });
                prop_assert_eq!(&together[1..], [found.clone(), found.clone()]);
                prop_assert!(together[0].is_empty());
                let found: BTreeSet<_> = found.iter().map(|place| (place.map.0, place.page)).collect();
                let expected: BTreeSet<_> = places.into_iter().filter(|(map, _)| *map != 2).collect();
                prop_assert!(found.is_superset(&expected), "{found:?} lacks some of {expected:?}");
            }
        }
    }

    #[test]
    fn one_content_everywhere_makes_no_endless_chain() {
        let index = ContentIndex::new().unwrap();
        for page in 0..100_000 {
            index.insert(&print(1), Place { map: MapId(0), page });
        }
        // As long as any of them is left it is known that there were more.
        let mut places = Vec::new();
        for page in 0..SAME_TAG as u32 - 1 {
            index.remove(&print(1), Place { map: MapId(0), page });
            assert!(index.candidates(print(1).prefix(), &mut places));
        }
        index.remove(&print(1), Place { map: MapId(0), page: SAME_TAG as u32 - 1 });
        assert!(!index.candidates(print(1).prefix(), &mut places));
        let statistics = index.statistics();
        assert_eq!(statistics.entries, 0);
        assert_eq!(statistics.left_out, 100_000 - SAME_TAG as u64);
    }
}
