//! Hashing pages side by side against hashing them one by one with `blake3::hash`.

use std::{hint::black_box, time::Instant};

use indexer::fingerprint::{Hasher, Page};

use crate::{
    figure::{Bound, Figures, median},
    vmm::fill,
};

const PAGES: usize = 1 << 16;
const ROUNDS: usize = 7;

pub(crate) fn measure(figures: &mut Figures) {
    eprintln!("hashing 256 MiB, page by page and side by side, {ROUNDS} rounds");
    let mut pages: Vec<Page> = vec![[0; 4096]; PAGES];
    for (number, page) in pages.iter_mut().enumerate() {
        fill(page, number as u64, 1);
    }
    let (mut ratios, mut batched, mut single) = (Vec::new(), Vec::new(), Vec::new());
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
        ratios.push(one_by_one / side_by_side);
        single.push(rate(one_by_one));
        batched.push(rate(side_by_side));
    }
    let wide =
        std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vl");
    let (least, with) = if wide { (2.0, "AVX-512") } else { (1.4, "AVX2 or less") };
    let how = format!(
        "{:.2} GB/s side by side, {:.2} GB/s by `blake3::hash`, one thread, {with}",
        median(batched),
        median(single)
    );
    figures.add("hash_batch_over_single", median(ratios), "ratio", Bound::AtLeast(least), how);
}

fn rate(seconds: f64) -> f64 {
    (PAGES * size_of::<Page>()) as f64 / seconds / 1e9
}
