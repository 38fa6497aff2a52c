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
    // And after that: of those that were left out nobody has said that they are gone.
    assert!(index.candidates(print(1).prefix(), &mut places));
    let statistics = index.statistics();
    assert_eq!(statistics.entries, 0);
    assert_eq!(statistics.left_out, 100_000 - SAME_TAG as u64);
    index.forget(MapId(0));
    assert!(!index.candidates(print(1).prefix(), &mut places), "an empty index has left nothing out");
}

#[test]
fn a_content_has_gone_when_the_last_place_of_it_has_and_not_before() {
    let index = ContentIndex::new().unwrap();
    let _listening = index.changes().listen();
    let place = |map, page| Place { map: MapId(map), page };
    let known = SAME_TAG as u32;
    // One map has all places that are known, the other one those that were left out.
    (0..known).for_each(|page| index.insert(&print(1), place(0, page)));
    (0..8).for_each(|page| index.insert(&print(1), place(1, page)));
    index.insert(&print(2), place(1, 100));
    let mut position = index.changes().position();
    let mut gone = || {
        let (after, changes) = index.changes().since(position).unwrap();
        position = after;
        changes.iter().filter(|change| **change == Change::new(print(1).prefix(), false)).count()
    };
    let more = || index.candidates(print(1).prefix(), &mut Vec::new());
    (0..known).for_each(|page| index.remove(&print(1), place(0, page)));
    index.forget(MapId(0));
    assert!(more());
    assert_eq!(gone(), 0);
    (0..7).for_each(|page| index.remove(&print(1), place(1, page)));
    assert!(more());
    assert_eq!(gone(), 0);
    index.remove(&print(1), place(1, 7));
    assert!(!more());
    assert_eq!(gone(), 1);
    assert!(!index.candidates(print(2).prefix(), &mut Vec::new()));
}

#[test]
fn a_host_full_of_clones_is_not_short_of_anything() {
    let index = ContentIndex::new().unwrap();
    let content = |n: u64| Fingerprint::new(*blake3::hash(&n.to_le_bytes()).as_bytes());
    let place = |map, page| Place { map: MapId(map), page };
    // Twice as many clones as places are known, and a VM of its own.
    for map in 0..2 * SAME_TAG as u32 {
        (0..5000).for_each(|page| index.insert(&content(page.into()), place(map, page)));
    }
    index.insert(&content(1 << 32), place(1000, 0));
    assert!(index.candidates(content(7).prefix(), &mut Vec::new()));
    assert!(!index.candidates(content(1 << 32).prefix(), &mut Vec::new()));
}

#[test]
fn a_guest_cannot_make_the_daemon_remember_ever_more_crowded_contents() {
    let index = ContentIndex::new().unwrap();
    let crowded =
        |index: &ContentIndex| -> usize { index.shards.iter().map(|shard| lock(shard).crowded.len()).sum() };
    // So many more that each shard has its fill, however the multiplier spreads them.
    for content in 0..(CROWDED as u64 + 1000) << SHARD {
        let print = Fingerprint::new(*blake3::hash(&content.to_le_bytes()).as_bytes());
        for page in 0..=SAME_TAG as u32 {
            index.insert(&print, Place { map: MapId(0), page });
        }
        // All but one are seen to go; of that one nobody says so.
        (0..SAME_TAG as u32).for_each(|page| index.remove(&print, Place { map: MapId(0), page }));
    }
    assert!(crowded(&index) <= CROWDED << SHARD);
    assert!(index.candidates(7, &mut Vec::new()), "beyond that there may be places of anything");
    index.forget(MapId(0));
    assert_eq!(crowded(&index), 0);
    assert!(!index.candidates(7, &mut Vec::new()));
}

#[test]
fn numbers_given_out_again_never_bring_back_what_was_forgotten() {
    let index = ContentIndex::new().unwrap();
    let print = |map: u32, page: u32| {
        Fingerprint::new(*blake3::hash(&(u64::from(map) << 32 | u64::from(page)).to_le_bytes()).as_bytes())
    };
    let place = |map, page| Place { map: MapId(map), page };
    let tell = |map| (0..20_000).for_each(|page| index.insert(&print(map, page), place(map, page)));
    tell(0);
    tell(1);
    let full = index.statistics();
    assert_eq!(full.entries, 40_000);
    index.forget(MapId(0));
    // Its numbers are those of the next map now.
    tell(2);
    let mut found = Vec::new();
    for page in 0..20_000 {
        found.clear();
        assert!(!index.candidates(print(0, page).prefix(), &mut found));
        assert!(found.iter().all(|place| place.map != MapId(0)));
        for map in [1, 2] {
            found.clear();
            index.candidates(print(map, page).prefix(), &mut found);
            assert!(found.contains(&place(map, page)));
        }
    }
    assert_eq!(index.statistics().entries, full.entries);
    assert!(index.statistics().bytes < full.bytes + full.bytes / 10);
    (0..4).for_each(|map| index.forget(MapId(map)));
    let empty = index.statistics();
    assert_eq!(empty.entries, 0);
    assert!(empty.bytes < 1 << 20, "{} bytes for nothing", empty.bytes);
}

#[test]
fn forgetting_a_map_while_others_change_loses_nothing_of_theirs() {
    let index = ContentIndex::new().unwrap();
    let print = |n: u32| Fingerprint::new(*blake3::hash(&n.to_le_bytes()).as_bytes());
    let (own, other) = (|n| Place { map: MapId(1), page: n }, |n| Place { map: MapId(2), page: n });
    (0..50_000).for_each(|n| index.insert(&print(n), own(n)));
    (0..50_000).for_each(|n| index.insert(&print(n + 10_000), other(n)));
    std::thread::scope(|scope| {
        scope.spawn(|| index.forget(MapId(1)));
        // Enough that buckets are merged, and split.
        (10_000..50_000).for_each(|n| index.remove(&print(n + 10_000), other(n)));
        (50_000..150_000).for_each(|n| index.insert(&print(n + 10_000), other(n)));
    });
    assert_eq!(index.statistics().entries, 110_000);
    let mut found = Vec::new();
    for n in (0..10_000).chain(50_000..150_000) {
        found.clear();
        index.candidates(print(n + 10_000).prefix(), &mut found);
        assert!(found.contains(&other(n)), "page {n}");
    }
}
