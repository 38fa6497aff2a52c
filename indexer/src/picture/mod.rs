//! What a host holds, in two bytes for each content: made of this host for others, and kept of others here.
//!
//! Owns the structure and its changes; who is told what and when is [`subscribe`]'s, what follows for a VM is [`known`]'s. The layout in memory is that on the wire
//! ([`memdex_wire::picture`]): for each bucket where it begins, and the 16-bit rests of its contents one after the other. A look-up takes two cache misses,
//! a content 2.1 to 2.3 bytes. Changes are kept beside it in a table until they are a sixteenth of the whole, and are then merged in one pass.
//!
//! # Why this structure
//!
//! | for 16 Mi contents | bytes each | wrong "there" | cache misses | takes changes |
//! |---|---|---|---|---|
//! | sorted 64-bit tags | 8.0 | 10⁻¹² | 24 | when merged |
//! | hash table of 32-bit tags | 4.6–9.1 | 4·10⁻³ | 1 | yes |
//! | binary fuse filter, 16 bits | 2.26 | 1.5·10⁻⁵ | 3 | never: has to be built anew from all keys |
//! | binary fuse filter, 8 bits | 1.13 | 4·10⁻³ | 3 | never |
//! | blocked Bloom filter, 16 bits a key | 2.0 | 1·10⁻³ | 1 | no removal |
//! | cuckoo filter, 16-bit tags | 2.1 | 1.2·10⁻⁴ | 2 | yes; building it from a stream can fail |
//! | **buckets of 16-bit rests** | **2.1–2.3** | **2.4–4.9·10⁻⁴** | **2** | **when merged** |
//!
//! It is the only one of two bytes that can be sent and received piece by piece while it is made, checked by the reader as it comes, and changed exactly.
//! A content that wrongly seems to be there is fetched late by a migration, which asks by whole fingerprints; a diff is off by that much.

mod build;
pub mod known;
pub mod log;
pub mod peers;
mod subscribe;

use std::collections::HashMap;

use memdex_wire::picture::{Change, Keys, MAX_IN_BUCKET, Part};

pub use build::build;
pub(crate) use subscribe::follow;

/// Changes that are kept beside the picture at least before they are merged.
const FEW: usize = 1 << 16;
/// Part of the contents that changes may be before they are merged: one in this many.
const SHARE: usize = 16;

/// What a host holds. See the module.
#[derive(Debug, Clone)]
pub struct Picture {
    keys: Keys,
    /// Where each bucket begins among the rests, and where the last one ends.
    starts: Vec<u32>,
    rests: Vec<u16>,
    /// By key, whether it is there: counts before what is in the buckets.
    changed: HashMap<u64, bool>,
}

/// Why parts do not make a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// Buckets are missing or come twice.
    #[error("the parts of the picture are out of order")]
    Order,
    /// More than was announced, or than the reader takes.
    #[error("the picture has more than {0} contents")]
    TooMany(u64),
}

impl Picture {
    /// A picture whose buckets are still to come.
    #[must_use]
    pub fn begin(keys: Keys) -> Self {
        Self { keys, starts: vec![0], rests: Vec::new(), changed: HashMap::new() }
    }

    /// Adds the next buckets.
    ///
    /// # Errors
    /// If they are not the next ones, or there are more than `most` contents then.
    pub fn push(&mut self, part: &Part, most: u64) -> Result<(), PartError> {
        let have = self.starts.len() - 1;
        if part.first as usize != have || have + part.counts.len() > self.keys.buckets() as usize {
            return Err(PartError::Order);
        }
        // A bucket's number of contents fits `u32` together with all others.
        let most = most.min(u64::from(u32::MAX));
        if (self.rests.len() + part.rests.len()) as u64 > most {
            return Err(PartError::TooMany(most));
        }
        let mut start = self.rests.len() as u32;
        self.starts.extend(part.counts.iter().map(|count| {
            start += u32::from(*count);
            start
        }));
        if start as usize != self.rests.len() + part.rests.len() {
            self.starts.truncate(have + 1);
            return Err(PartError::Order);
        }
        self.rests.extend_from_slice(&part.rests);
        Ok(())
    }

    /// Without room for more.
    #[must_use]
    pub fn snug(mut self) -> Self {
        self.starts.shrink_to_fit();
        self.rests.shrink_to_fit();
        self
    }

    /// Whether all buckets are there.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.starts.len() - 1 == self.keys.buckets() as usize
    }

    /// The buckets from `first` on, as many as make a part of a moderate size.
    #[must_use]
    pub fn part(&self, first: u32) -> Part {
        const RESTS: usize = 32 << 10;
        const BUCKETS: usize = 8 << 10;
        let buckets = self.starts[first as usize..].windows(2).take(BUCKETS);
        let mut part = Part { first, ..Part::default() };
        for bucket in buckets {
            let range = bucket[0] as usize..bucket[1] as usize;
            if !part.counts.is_empty() && part.rests.len() + range.len() > RESTS {
                break;
            }
            part.counts.push(range.len() as u16);
            part.rests.extend_from_slice(&self.rests[range]);
        }
        part
    }

    /// Changes that have not been merged yet.
    #[must_use]
    pub fn unmerged(&self) -> u64 {
        self.changed.len() as u64
    }

    /// How keys are made.
    #[must_use]
    pub fn keys(&self) -> Keys {
        self.keys
    }

    /// Contents, as far as they have been merged.
    #[must_use]
    pub fn contents(&self) -> u64 {
        self.rests.len() as u64
    }

    /// Bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // A hash table has a slot of 16 bytes and a control byte for each entry that it has room for.
        (self.starts.capacity() * 4 + self.rests.capacity() * 2 + self.changed.capacity() * 17) as u64
    }

    /// Whether the host holds, or seems to hold, a content with this prefix.
    #[must_use]
    pub fn contains(&self, prefix: u64) -> bool {
        let key = self.keys.key(prefix);
        if !self.changed.is_empty()
            && let Some(there) = self.changed.get(&key)
        {
            return *there;
        }
        self.stored(key)
    }

    fn stored(&self, key: u64) -> bool {
        let (bucket, rest) = Keys::split(key);
        let (start, end) = (self.starts[bucket as usize] as usize, self.starts[bucket as usize + 1] as usize);
        let bucket = &self.rests[start..end];
        // A bucket is a cache line or two: looking at all of it beats a search, unless somebody crowds it.
        if bucket.len() <= 64 { bucket.contains(&rest) } else { bucket.binary_search(&rest).is_ok() }
    }

    /// Notes what has come or gone. Returns whether that was not known.
    pub fn apply(&mut self, change: Change) -> bool {
        let key = self.keys.key(change.prefix());
        if self.stored(key) == change.come() {
            self.changed.remove(&key).is_some()
        } else {
            self.changed.insert(key, change.come()).is_none()
        }
    }

    /// Whether there are so many changes that they should be [merged](Picture::merge).
    #[must_use]
    pub fn wants_merge(&self) -> bool {
        self.changed.len() > FEW.max(self.rests.len() / SHARE)
    }

    /// The same with its changes in their buckets. Takes milliseconds for each million contents.
    #[must_use]
    pub fn merged(&self) -> Self {
        let mut changes: Vec<(u64, bool)> = self.changed.iter().map(|(key, there)| (*key, *there)).collect();
        changes.sort_unstable();
        let mut changes = changes.into_iter().peekable();
        let mut starts = Vec::with_capacity(self.starts.len());
        let mut rests = Vec::with_capacity(self.rests.len() + self.changed.len());
        let mut touched: Vec<u16> = Vec::new();
        starts.push(0);
        for (bucket, edges) in self.starts.windows(2).enumerate() {
            let old = &self.rests[edges[0] as usize..edges[1] as usize];
            let of_this = |(key, _): &(u64, bool)| Keys::split(*key).0 as usize == bucket;
            if changes.peek().is_some_and(of_this) {
                touched.clear();
                touched.extend_from_slice(old);
                while let Some((key, there)) = changes.next_if(of_this) {
                    let rest = Keys::split(key).1;
                    match (touched.binary_search(&rest), there) {
                        (Err(at), true) if touched.len() < MAX_IN_BUCKET => touched.insert(at, rest),
                        (Ok(at), false) => {
                            touched.remove(at);
                        }
                        _ => {}
                    }
                }
                rests.extend_from_slice(&touched);
            } else {
                rests.extend_from_slice(old);
            }
            starts.push(rests.len() as u32);
        }
        Self { keys: self.keys, starts, rests, changed: HashMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn keys() -> Keys {
        Keys::new(0x9E37_79B9_7F4A_7C15, 6).unwrap()
    }

    /// A picture of these prefixes, sent in parts.
    pub(super) fn picture(prefixes: impl IntoIterator<Item = u64>) -> Picture {
        let mut all: Vec<u64> = prefixes.into_iter().map(|prefix| keys().key(prefix)).collect();
        all.sort_unstable();
        all.dedup();
        let mut made = Picture::begin(keys());
        build::push_keys(&mut made, 0..keys().buckets(), &all);
        let mut got = Picture::begin(keys());
        let mut first = 0;
        while !got.complete() {
            let part = made.part(first);
            first += part.counts.len() as u32;
            got.push(&part, 1 << 20).unwrap();
        }
        got
    }

    proptest! {
        #[test]
        fn what_was_told_is_there_and_what_has_gone_is_not(
            first in prop::collection::btree_set(0..400_u64, 0..200),
            steps in prop::collection::vec((0..400_u64, any::<bool>(), prop::bool::weighted(0.05)), 0..300),
        ) {
            let spread = |n: u64| n.wrapping_mul(0x1234_5678_9abc_def7) << 1;
            let mut picture = picture(first.iter().map(|n| spread(*n)));
            let mut model: BTreeSet<u64> = first.iter().map(|n| keys().key(spread(*n))).collect();
            for (n, come, merge) in steps {
                let change = Change::new(spread(n), come);
                picture.apply(change);
                let key = keys().key(spread(n));
                if come { model.insert(key); } else { model.remove(&key); }
                if merge {
                    picture = picture.merged();
                    prop_assert!(picture.changed.is_empty() && picture.complete());
                    prop_assert_eq!(picture.contents(), model.len() as u64);
                }
            }
            for n in 0..400 {
                prop_assert_eq!(picture.contains(spread(n)), model.contains(&keys().key(spread(n))), "{}", n);
            }
        }
    }

    #[test]
    fn parts_out_of_order_and_too_many_contents_are_refused() {
        let made = picture(0..1000);
        let mut got = Picture::begin(keys());
        let part = made.part(0);
        assert_eq!(got.push(&Part { first: 1, ..part.clone() }, 5000), Err(PartError::Order));
        assert_eq!(got.push(&part, 10), Err(PartError::TooMany(10)));
        let lying = Part { counts: vec![9], ..part.clone() };
        assert_eq!(got.push(&lying, 5000), Err(PartError::Order));
        assert!(!got.complete());
        got.push(&part, 5000).unwrap();
        assert_eq!(
            got.push(&Part { first: keys().buckets(), counts: vec![0], rests: vec![] }, 5000),
            Err(PartError::Order)
        );
        assert!(got.complete());
    }

    #[test]
    fn few_contents_that_are_lacking_seem_to_be_there() {
        let random =
            |n: u64| u64::from_le_bytes(blake3::hash(&n.to_le_bytes()).as_bytes()[..8].try_into().unwrap());
        let picture = picture((0..2000).map(random));
        assert!((0..2000).all(|n| picture.contains(random(n))));
        // 31 in a bucket: 47 of 100,000 are expected.
        let wrong = (2000..102_000).filter(|n| picture.contains(random(*n))).count();
        assert!((10..120).contains(&wrong), "{wrong}");
    }
}
