//! Numbers for the pages of all maps, small enough to be kept millions of times.
//!
//! Owns which number stands for which page. Each shard has numbers of its own, so that none waits for another.
//!
//! Numbers are given out in *ranges* of [`RANGE`] pages that lie side by side in a map, when the first of them is told; those of a map that is forgotten are given out again, the lowest first, because low numbers
//! take fewer bytes. A range is given to another map only once no entry names it any more: a number never means a page of another map than the one it was told for.

use std::collections::BTreeSet;

use super::{MapId, Place, cell::PLACES};

/// Pages in a range: 32 MiB.
const RANGE: u32 = 1 << 13;
/// Ranges that there can be: 4 PiB of guests.
const RANGES: usize = (PLACES / RANGE as u64) as usize;
/// In the list of a map: no range yet.
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// For each range the map that has it, and where it begins there, in ranges.
    ranges: Vec<Option<(MapId, u32)>>,
    free: BTreeSet<u32>,
    /// The ranges of each map, in the order of the maps' names.
    maps: Vec<(MapId, Vec<u32>)>,
}

impl Places {
    /// The number of a place, if it has one.
    pub(super) fn number(&self, place: Place) -> Option<u64> {
        let (_, ranges) = &self.maps[self.find(place.map).ok()?];
        let range = *ranges.get((place.page / RANGE) as usize)?;
        (range != NONE).then(|| u64::from(range) * u64::from(RANGE) + u64::from(place.page % RANGE))
    }

    /// The number of a place; `None` if there are none left.
    pub(super) fn give(&mut self, place: Place) -> Option<u64> {
        if let Some(number) = self.number(place) {
            return Some(number);
        }
        let range = match self.free.pop_first() {
            Some(range) => range,
            None if self.ranges.len() < RANGES => {
                self.ranges.push(None);
                self.ranges.len() as u32 - 1
            }
            None => return None,
        };
        self.ranges[range as usize] = Some((place.map, place.page / RANGE));
        let map = self.find(place.map).unwrap_or_else(|at| {
            self.maps.insert(at, (place.map, Vec::new()));
            at
        });
        let (ranges, at) = (&mut self.maps[map].1, (place.page / RANGE) as usize);
        if ranges.len() <= at {
            ranges.resize(at + 1, NONE);
        }
        ranges[at] = range;
        self.number(place)
    }

    /// What a number stands for.
    pub(super) fn place(&self, number: u64) -> Option<Place> {
        let (map, range) = (*self.ranges.get((number / u64::from(RANGE)) as usize)?)?;
        Some(Place { map, page: range * RANGE + (number % u64::from(RANGE)) as u32 })
    }

    /// Forgets which numbers a map has, if it has any. They still stand for its pages, until they are [taken back](Self::take_back).
    pub(super) fn leave(&mut self, map: MapId) -> Option<Vec<u32>> {
        let at = self.find(map).ok()?;
        Some(self.maps.remove(at).1)
    }

    /// Takes back the numbers that a map had. No entry may have one any more.
    pub(super) fn take_back(&mut self, ranges: Vec<u32>) {
        for range in ranges.into_iter().filter(|range| *range != NONE) {
            self.ranges[range as usize] = None;
            self.free.insert(range);
        }
        while let Some(None) = self.ranges.last() {
            self.ranges.pop();
            self.free.remove(&(self.ranges.len() as u32));
        }
        if self.ranges.len() * 2 < self.ranges.capacity() {
            self.ranges.shrink_to_fit();
        }
    }

    /// Whether no map has any numbers.
    pub(super) fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// Bytes allocated, but for the few that free ranges take.
    pub(super) fn bytes(&self) -> usize {
        let lists = self.maps.iter().map(|(_, ranges)| ranges.capacity() * size_of::<u32>());
        self.ranges.capacity() * size_of::<Option<(MapId, u32)>>() + lists.sum::<usize>()
    }

    fn find(&self, map: MapId) -> Result<usize, usize> {
        self.maps.binary_search_by_key(&map, |(map, _)| *map)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_stand_for_one_place_until_its_map_is_forgotten(
            steps in prop::collection::vec((0..4u32, 0..20 * RANGE, any::<bool>(), 0..20u8), 0..200)
        ) {
            let mut places = Places::default();
            let mut known: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for (map, page, tell, forget) in steps {
                let place = Place { map: MapId(map), page };
                if forget == 0 {
                    let ranges = places.leave(place.map);
                    prop_assert_eq!(places.number(place), None);
                    for ((map, page), number) in &known {
                        prop_assert_eq!(places.place(*number), Some(Place { map: MapId(*map), page: *page }));
                    }
                    places.take_back(ranges.unwrap_or_default());
                    known.retain(|(other, _), _| *other != map);
                    let ranges: BTreeSet<_> = known.keys().map(|(map, page)| (*map, page / RANGE)).collect();
                    prop_assert_eq!(places.ranges.iter().flatten().count(), ranges.len());
                    prop_assert_eq!(places.ranges.len(), places.free.len() + ranges.len());
                } else if tell {
                    known.insert((map, page), places.give(place).unwrap());
                } else if let Some(number) = known.get(&(map, page)) {
                    prop_assert_eq!(places.number(place), Some(*number));
                }
                let numbers: BTreeSet<_> = known.values().collect();
                prop_assert_eq!(numbers.len(), known.len());
                for ((map, page), number) in &known {
                    prop_assert_eq!(places.place(*number), Some(Place { map: MapId(*map), page: *page }));
                }
            }
        }
    }

    #[test]
    fn low_numbers_are_given_out_again_first() {
        let mut places = Places::default();
        let forget = |places: &mut Places, map| {
            let ranges = places.leave(MapId(map)).unwrap();
            places.take_back(ranges);
        };
        let place = |map, range| Place { map: MapId(map), page: range * RANGE + 7 };
        for range in 0..10 {
            places.give(place(range % 2, range));
        }
        forget(&mut places, 0);
        assert_eq!(places.give(place(2, 3)), Some(7));
        assert_eq!(places.place(2 * u64::from(RANGE)), None);
        assert_eq!(places.number(place(0, 0)), None);
        forget(&mut places, 1);
        forget(&mut places, 2);
        assert!(places.ranges.is_empty() && places.free.is_empty() && places.maps.is_empty());
    }
}
