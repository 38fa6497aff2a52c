use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SAME: usize = 4;

/// What holds of every table: its cells are where it looks for them, in order, and as large as they need to be.
fn check(table: &Table) {
    let mut entries = Vec::new();
    let mut len = 0;
    for (bucket, slot) in table.buckets.iter().enumerate() {
        let bytes = table.cells.get(*slot);
        assert_eq!(bytes[..4], (bucket as u32).to_le_bytes());
        let form = Form::of(table.level(bucket));
        let cell = Cell::new(bytes, form);
        entries.clear();
        cell.read(&mut entries);
        assert_eq!(entries.len(), cell.len());
        assert!(entries.is_sorted_by_key(|entry| entry.rest));
        assert!(cell.len() <= cell.room() && form.bytes(cell.width(), cell.room()) <= bytes.len());
        assert!(entries.iter().all(|entry| width(entry.place) <= cell.width()));
        for entry in &entries {
            let tag = u64::from(entry.rest) << table.level(bucket) | bucket as u64;
            assert_eq!(table.bucket(tag), (bucket, form, entry.rest));
        }
        len += entries.len();
    }
    assert_eq!(len, table.entries);
}

/// Tags of which many share a bucket, a thumb or all but a bit.
fn tags() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..1u64 << BITS),
        (0..40u64),
        (0..40u64).prop_map(|n| n << (BITS - 6)),
        (0..200u64).prop_map(|n| n << 18 | 3),
    ]
}

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..50u64, 2 => 0..1u64 << 24, 1 => 0..1u64 << 32, 1 => 0..1u64 << 40]
}

proptest! {
    #[test]
    fn it_is_a_set_of_tags_and_places(
        steps in prop::collection::vec((0..8u8, tags(), numbers(), 1..40u64), 0..120)
    ) {
        let mut table = Table::new();
        let mut model: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (step, tag, place, many) in steps {
            match step {
                // Enough of them that buckets are split.
                0..5 => for n in 0..many {
                    let (tag, place) = ((tag + n * 0x1_2345_6789) % (1 << BITS), place + n / 8);
                    let places = model.entry(tag).or_default();
                    let inserted = table.insert(tag, place, SAME);
                    let crowded = places.len() == SAME && !places.contains(&place);
                    prop_assert_eq!(inserted, if crowded { Inserted::Crowded } else { Inserted::There });
                    if !crowded {
                        places.insert(place);
                    }
                },
                5 | 6 => {
                    let some: Vec<_> = model.range(tag..).take(many as usize).map(|(tag, _)| *tag).collect();
                    for tag in some.into_iter().chain([tag]) {
                        let places = model.entry(tag).or_default();
                        let place = places.first().copied().unwrap_or(place);
                        let expected = places.remove(&place).then_some(!places.is_empty());
                        prop_assert_eq!(table.remove(tag, place), expected);
                    }
                }
                _ => {
                    let keep = |place: u64| place % 3 != many % 3;
                    table.walk();
                    let mut next = Some(0);
                    while let Some(from) = next {
                        next = table.weed(from, keep);
                    }
                    while !table.shrink(1) {}
                    model.values_mut().for_each(|places| places.retain(|place| keep(*place)));
                }
            }
            model.retain(|_, places| !places.is_empty());
            check(&table);
            prop_assert_eq!(table.len(), model.values().map(BTreeSet::len).sum::<usize>());
            for (tag, places) in &model {
                let found: Vec<_> = table.places(*tag).collect();
                prop_assert_eq!(found.len(), places.len());
                prop_assert!(found.iter().all(|place| places.contains(place)));
                prop_assert!(table.contains(*tag));
            }
            prop_assert_eq!(table.contains(tag), model.contains_key(&tag));
        }
    }
}

/// Numbers that look like chance.
fn mixed(n: u64) -> u64 {
    let x = (n ^ n >> 31).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x ^ x >> 29).wrapping_mul(0x94D0_49BB_1331_11EB) >> 3
}

#[test]
fn it_grows_and_shrinks_a_little_at_a_time() {
    // A shard of a host of 12 GiB.
    const MANY: u64 = 200_000;
    let tag = |n| mixed(n) % (1 << BITS);
    let mut table = Table::new();
    for n in 0..MANY {
        assert_eq!(table.insert(tag(n), n, SAME), Inserted::There);
        if n > MANY / 4 {
            let each = table.bytes() as f64 / n as f64;
            assert!(each < 9.0, "{each} bytes for each of {n} entries");
        }
    }
    check(&table);
    let each = table.bytes() as f64 / MANY as f64;
    assert!(each < 6.6, "{each} bytes an entry");
    for n in 0..MANY {
        assert!(table.places(tag(n)).any(|place| place == n));
    }
    for n in 0..MANY {
        assert!(table.remove(tag(n), n).is_some());
        let left = MANY - n;
        if left > MANY / 4 {
            let each = table.bytes() as f64 / left as f64;
            assert!(each < 11.0, "{each} bytes for each of {left} entries left");
        }
    }
    check(&table);
    assert_eq!((table.len(), table.buckets.len()), (0, *BUCKETS.start()));
    assert!(table.bytes() < 128 << 10, "{} bytes for nothing", table.bytes());
}

#[test]
fn updates_leave_its_size_as_it_is() {
    const MANY: u64 = 100_000;
    let tag = |n| mixed(n) % (1 << BITS);
    let mut table = Table::new();
    (0..MANY).for_each(|n| assert_eq!(table.insert(tag(n), n, SAME), Inserted::There));
    for n in 0..5 * MANY {
        assert!(table.remove(tag(n), n % MANY).is_some());
        assert_eq!(table.insert(tag(n + MANY), n % MANY, SAME), Inserted::There);
    }
    check(&table);
    let each = table.bytes() as f64 / MANY as f64;
    assert!(each < 7.5, "{each} bytes an entry");
}

#[test]
fn places_of_a_huge_host_take_more_bytes_and_only_then() {
    let mut table = Table::new();
    let tag = |n| mixed(n) % (1 << BITS);
    let each = |table: &Table| table.bytes() as f64 / table.len() as f64;
    (0..100_000).for_each(|n| assert_eq!(table.insert(tag(n), n, SAME), Inserted::There));
    let narrow = each(&table);
    (100_000..200_000).for_each(|n| assert_eq!(table.insert(tag(n), n << 8, SAME), Inserted::There));
    check(&table);
    assert!(each(&table) > narrow + 0.3, "{} and {narrow}", each(&table));
    for n in 0..100_000 {
        assert_eq!(table.places(tag(n)).collect::<Vec<_>>(), [n]);
        assert_eq!(table.places(tag(n + 100_000)).collect::<Vec<_>>(), [(n + 100_000) << 8]);
    }
}

#[test]
fn a_bucket_that_is_chosen_again_and_again_ends_somewhere() {
    let mut table = Table::new();
    // All have the bits in common that any number of buckets goes by.
    let tag = |n: u64| n << 22 | 5;
    let mut there = Vec::new();
    for n in 0..1 << (BITS - 22) {
        for place in 0..SAME as u64 {
            match table.insert(tag(n), place, SAME) {
                Inserted::There => there.push((tag(n), place)),
                outcome => assert_eq!(outcome, Inserted::Full),
            }
        }
    }
    check(&table);
    assert!((400..3000).contains(&there.len()), "{} entries in one bucket", there.len());
    assert!(table.buckets.len() <= *BUCKETS.start() + there.len() / AVERAGE);
    assert!(there.iter().all(|(tag, place)| table.places(*tag).any(|found| found == *place)));
    // The others go on as before.
    for n in 0..100_000 {
        assert_eq!(table.insert((mixed(n) % (1 << BITS)) & !1, n, SAME), Inserted::There);
    }
    check(&table);
    assert!(there.iter().all(|(tag, place)| table.remove(*tag, *place).is_some()));
    assert_eq!(table.len(), 100_000);
    check(&table);
}
