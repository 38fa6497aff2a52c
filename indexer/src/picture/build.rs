//! This host's own picture, made for others.
//!
//! Owns the bound of the memory that takes: a host with more than [`PASS`] pages with content is walked several times, each time for a share of the buckets.

use std::ops::Range;

use memdex_wire::{
    Fingerprint,
    picture::{Keys, MAX_BITS, MAX_IN_BUCKET, Part},
};

use super::Picture;

/// Keys that are sorted at once, if pages differ: 64 MiB of them, and never more than twice that.
const PASS: u64 = 8 << 20;
/// Contents in a bucket, at most if all pages differ, and at least half as many.
pub(super) const IN_BUCKET: u64 = 32;
/// Contents that there is room for at least: a host on which nothing runs yet soon holds more.
const FEW: u64 = 1 << 20;

/// The picture of up to `pages` contents, with keys of its own. `each` calls with every fingerprint that is held, as often as it likes.
pub fn build(multiplier: u64, pages: u64, each: impl Fn(&mut dyn FnMut(&Fingerprint))) -> Picture {
    let bits = pages.max(FEW).div_ceil(IN_BUCKET).next_power_of_two().trailing_zeros().clamp(4, MAX_BITS);
    let Ok(keys) = Keys::new(multiplier | 1, bits) else { unreachable!("odd, and as many bits as may be") };
    let passes = pages.div_ceil(PASS).max(1);
    let mut picture = Picture::begin(keys);
    let mut all = Vec::new();
    let edge = |pass: u64| (u64::from(keys.buckets()) * pass / passes) as u32;
    for pass in 0..passes {
        let buckets = edge(pass)..edge(pass + 1);
        all.clear();
        each(&mut |fingerprint| {
            let key = keys.key(fingerprint.prefix());
            if buckets.contains(&Keys::split(key).0) {
                all.push(key);
                // However often there is the same.
                if all.len() as u64 >= 2 * PASS {
                    all.sort_unstable();
                    all.dedup();
                }
            }
        });
        all.sort_unstable();
        all.dedup();
        push_keys(&mut picture, buckets, &all);
    }
    picture
}

/// Adds buckets with these keys, which rise.
pub(super) fn push_keys(picture: &mut Picture, buckets: Range<u32>, mut keys: &[u64]) {
    let mut part = Part { first: buckets.start, ..Part::default() };
    for bucket in buckets {
        let (own, others) = keys.split_at(keys.partition_point(|key| Keys::split(*key).0 <= bucket));
        let own = &own[..own.len().min(MAX_IN_BUCKET)];
        part.counts.push(own.len() as u16);
        part.rests.extend(own.iter().map(|key| Keys::split(*key).1));
        keys = others;
    }
    let pushed = picture.push(&part, u64::MAX);
    debug_assert!(pushed.is_ok(), "{pushed:?}");
}
