//! Hashing pages side by side, against hashing them one by one with `blake3::hash`, against a hash that anybody can forge (XXH3), and against merely reading them.

use std::{hint::black_box, time::Instant};

use indexer::fingerprint::{Hasher, Page};
use twox_hash::XxHash3_64;

use crate::{
    figure::{Bound, Figures, median},
    vmm::fill,
};

const PAGES: usize = 1 << 16;
const ROUNDS: usize = 7;

pub(crate) const NAMES: [&str; 4] =
    ["hash_batch_over_single", "hash_batch_over_xxh3", "hash_over_read_limit", "hash_odd_over_best"];

/// Largest number of pages that is tried in one call, and so often each.
const ODD: usize = 33;
const CALLS: usize = 400;

pub(crate) fn measure(figures: &mut Figures) {
    eprintln!("hashing 256 MiB, page by page and side by side, {ROUNDS} rounds");
    let mut pages: Vec<Page> = vec![[0; 4096]; PAGES];
    for (number, page) in pages.iter_mut().enumerate() {
        fill(page, number as u64, 1);
    }
    let (mut ratios, mut batched, mut single) = (Vec::new(), Vec::new(), Vec::new());
    let (mut forgeable, mut read) = (Vec::new(), Vec::new());
    let mut hasher = Hasher::new();
    let mut out = Vec::with_capacity(PAGES);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for page in &pages {
            black_box(blake3::hash(page));
        }
        let one_by_one = begun.elapsed().as_secs_f64();
        out.clear();
        let begun = Instant::now();
        hasher.fingerprint(&pages, &mut out);
        let side_by_side = begun.elapsed().as_secs_f64();
        black_box(&out);
        let begun = Instant::now();
        for page in &pages {
            black_box(XxHash3_64::oneshot(page));
        }
        forgeable.push(rate(begun.elapsed().as_secs_f64()));
        let begun = Instant::now();
        black_box(pages.iter().map(sum).fold(0, u64::wrapping_add));
        read.push(rate(begun.elapsed().as_secs_f64()));
        ratios.push(one_by_one / side_by_side);
        single.push(rate(one_by_one));
        batched.push(rate(side_by_side));
    }
    let wide =
        std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vl");
    let (least, with) = if wide { (2.2, "AVX-512") } else { (1.4, "AVX2 or less") };
    let (batched, single, forgeable, read) =
        (median(batched), median(single), median(forgeable), median(read));
    let how =
        format!("{batched:.2} GB/s side by side, {single:.2} GB/s by `blake3::hash`, one thread, {with}");
    figures.add(NAMES[0], median(ratios), "ratio", Bound::AtLeast(least), how);
    let how = format!("{forgeable:.2} GB/s by XXH3 of 64 bits (twox-hash, AVX2 where there is), one thread");
    figures.add(NAMES[1], batched / forgeable, "ratio", Bound::AtLeast(0.7), how);
    let how = format!("{read:.2} GB/s to read and add up the words of each page, one thread");
    figures.add(NAMES[2], batched / read, "ratio", Bound::AtLeast(0.0), how);
}

/// What calls with any number of pages cost, over the cheapest other way to the same digests that a caller could find: page by page with `blake3::hash`, with
/// pages added that nobody wants, or in two calls, of which the second may be page by page.
pub(crate) fn measure_odd(figures: &mut Figures) {
    eprintln!("hashing 1 to {ODD} pages in one call, {ROUNDS} rounds");
    let mut pages: Vec<Page> = vec![[0; 4096]; ODD];
    for (number, page) in pages.iter_mut().enumerate() {
        fill(page, number as u64, 1);
    }
    let mut hasher = Hasher::new();
    let mut out = Vec::with_capacity(ODD);
    let mut costs = vec![Vec::new(); ODD];
    let mut singles = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for page in pages.iter().cycle().take(CALLS * 4) {
            black_box(blake3::hash(page));
        }
        singles.push(begun.elapsed().as_secs_f64() / 4.0);
        for (pages, costs) in (1..=ODD).map(|count| &pages[..count]).zip(&mut costs) {
            let begun = Instant::now();
            for _ in 0..CALLS {
                out.clear();
                hasher.fingerprint(black_box(pages), &mut out);
                black_box(&out);
            }
            costs.push(begun.elapsed().as_secs_f64());
        }
    }
    let single = median(singles);
    let costs: Vec<f64> = costs.into_iter().map(median).collect();
    let over_best = |count: usize| {
        let one_by_one = |pages: usize| single * pages as f64;
        let more = costs[count..].iter().copied();
        let parts = (1..count).map(|first| {
            let second = count - first;
            costs[first - 1] + costs[second - 1].min(one_by_one(second))
        });
        costs[count - 1] / more.chain(parts).fold(one_by_one(count), f64::min)
    };
    let worst = (1..ODD)
        .map(|count| (over_best(count), count))
        .fold((0.0, 0), |worst, this| if this.0 > worst.0 { this } else { worst });
    let page = |count: usize| costs[count - 1] / CALLS as f64 / count as f64 * 1e6;
    let how = format!(
        "worst with {} pages; a page takes {:.2} µs in a call of 1, {:.2} of 7, {:.2} of 15, {:.2} of 16, {:.2} of 17, {:.2} of 32",
        worst.1,
        page(1),
        page(7),
        page(15),
        page(16),
        page(17),
        page(32)
    );
    figures.add(NAMES[3], worst.0, "ratio", Bound::AtMost(1.15), how);
}

/// The least that anybody can do who has to see every byte.
fn sum(page: &Page) -> u64 {
    let words = page.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    words.fold(0, u64::wrapping_add)
}

fn rate(seconds: f64) -> f64 {
    (PAGES * size_of::<Page>()) as f64 / seconds / 1e9
}
