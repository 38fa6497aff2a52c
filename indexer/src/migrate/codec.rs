//! Compression of blocks: zstd as one stream for each connection, at a level that makes sending fastest.
//!
//! Owns the zstd contexts and the choice of the level. All blocks of a connection are one zstd stream with a window of [`WINDOW`], so that
//! what is alike in pages far apart is found; each block ends on a flush, so that it can be used as soon as it is there.
//!
//! # The level
//!
//! A connection compresses and sends by turns, but it compresses while it would have to wait for the cap anyway. So a byte of memory costs
//! `max(compress(level), ratio(level) · cap) + ratio(level) · link` seconds, where `link` is what a
//! byte on the wire takes, without that wait: the worst that was seen lately (a link that is not full looks faster than it is). What has been
//! measured is used, what has not been is scaled from its neighbour by what is typical of zstd. Compressing is measured in the processor's time, and
//! made longer by what the thread lately had to wait for one; and half of what level 1 takes is added for what else this host has to do to send a page.
//! The level that costs least is taken, if it is better by a few percent. On a link faster than zstd that would be none at all; but fewer bytes are worth
//! [`WORTH`] to everybody else on it, so it is none only if that saves more time.

use std::{
    io,
    time::{Duration, Instant},
};

use memdex_wire::{
    PAGE_SIZE,
    transfer::{Codec, MAX_BLOCK_PAGES, MAX_PAYLOAD},
};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// The window, as a power of two: 1 MiB, and so much memory at either end of each connection. At the levels below a longer one finds nothing more in guests'
/// memory (measured: 0.2 % at level 3), and does not fit the processor's cache.
const WINDOW: u32 = 20;
/// Blocks between two choices of the level.
const CHOOSE: u32 = 8;
/// Time that fewer bytes on the wire may cost, over all that is still to be sent.
const WORTH: Duration = Duration::from_millis(40);
/// Blocks until it is known how much there is to send.
const SURE: u32 = 32;
/// How much of the worst a link was seen to take is remembered from block to block.
const MEMORY: f64 = 0.99;
/// Weight of the latest block in what is remembered.
const WEIGHT: f64 = 0.2;
/// A level is given up for one that costs less than this part of it.
const BETTER: f64 = 0.97;
/// Reading and hashing a page takes about half of what compressing it at level 1 does.
const BESIDES: f64 = 0.5;

/// A level, and how it compares with zstd's level 1: time and size, measured with the memory of Debian guests.
#[derive(Debug, Clone, Copy)]
struct Level {
    /// 0 is none.
    zstd: i32,
    time: f64,
    size: f64,
}

const LEVELS: [Level; 5] = [
    Level { zstd: 0, time: 0.0, size: 0.0 },
    Level { zstd: 1, time: 1.0, size: 1.0 },
    Level { zstd: 2, time: 1.15, size: 0.96 },
    Level { zstd: 3, time: 1.6, size: 0.935 },
    Level { zstd: 6, time: 4.2, size: 0.89 },
];
/// Where it begins: zstd's level 1. Those below it save a fifth of its time and make a third more.
const FIRST: usize = 1;

/// One connection's compression.
pub struct Compressor {
    level: usize,
    encoder: Option<Encoder<'static>>,
    /// Since the level was chosen last, and in all.
    blocks: u32,
    seen: u32,
    /// Seconds a byte of memory takes to compress, and bytes that become of it, as if at level 1.
    compress: Option<f64>,
    /// Seconds that compressing took of late, and those of them on a processor.
    waited: (f64, f64),
    ratio: Option<f64>,
    /// Seconds a byte took on the wire of late, and at the worst.
    lately: Option<f64>,
    link: Option<f64>,
    /// Seconds a byte takes at least, by a cap.
    least: f64,
    /// Bytes of memory still to be sent.
    left: u64,
}

/// Time that this thread has spent on a processor.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn blend(old: Option<f64>, new: f64) -> Option<f64> {
    Some(old.map_or(new, |old| old + WEIGHT * (new - old)))
}

impl Default for Compressor {
    fn default() -> Self {
        Self {
            level: FIRST,
            encoder: None,
            blocks: 0,
            seen: 0,
            compress: None,
            waited: (0.0, 0.0),
            ratio: None,
            lately: None,
            link: None,
            least: 0.0,
            left: 0,
        }
    }
}

impl Compressor {
    /// The level in use; 0 is none.
    #[must_use]
    pub fn level(&self) -> i32 {
        LEVELS[self.level].zstd
    }

    /// Appends what `pages` become to `out`, and says how it is to be read.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> io::Result<Codec> {
        self.choose();
        let level = LEVELS[self.level];
        if level.zstd == 0 {
            out.extend_from_slice(pages);
            return Ok(Codec::Plain);
        }
        let (begun, began) = (thread_time(), Instant::now());
        let codec = if self.encoder.is_some() { Codec::Zstd } else { Codec::NewZstd };
        if self.encoder.is_none() {
            let mut encoder = Encoder::new(level.zstd)?;
            encoder.set_parameter(CParameter::WindowLog(WINDOW))?;
            self.encoder = Some(encoder);
        }
        let encoder = self.encoder.as_mut().expect("made above");
        let first = out.len();
        // Not filled with zeros first: that would take longer than some blocks need to be compressed.
        out.reserve(MAX_PAYLOAD);
        let mut input = InBuffer::around(pages);
        let mut output = OutBuffer::around_pos(out, first);
        while input.pos() < pages.len() {
            encoder.run(&mut input, &mut output)?;
        }
        while encoder.flush(&mut output)? > 0 {}
        let length = output.pos() - first;
        let bytes = pages.len().max(1) as f64;
        let (spent, took) = ((thread_time() - begun).as_secs_f64(), began.elapsed().as_secs_f64());
        self.waited = (self.waited.0 * MEMORY + took, self.waited.1 * MEMORY + spent);
        self.compress = blend(self.compress, spent / bytes / level.time);
        self.ratio = blend(self.ratio, length as f64 / bytes / level.size);
        Ok(codec)
    }

    /// Says how long it took to get `bytes` onto the wire. By a cap it takes at least `least` seconds a byte; `left` bytes of memory
    /// are still to be sent by this connection, as far as that is known.
    pub fn sent(&mut self, bytes: usize, took: Duration, least: f64, left: u64) {
        let seen = took.as_secs_f64() / bytes.max(1) as f64;
        self.lately = blend(self.lately, seen);
        let lately = self.lately.unwrap_or(seen);
        self.least = least;
        self.link = Some(self.link.map_or(lately, |worst| lately.max(worst * MEMORY)));
        self.left = left;
    }

    fn choose(&mut self) {
        self.blocks += 1;
        self.seen = self.seen.saturating_add(1);
        let (Some(compress), Some(ratio), Some(link)) = (self.compress, self.ratio, self.link) else {
            return;
        };
        if self.blocks < CHOOSE {
            return;
        }
        self.blocks = 0;
        let (took, spent) = self.waited;
        let busy = if spent > 0.0 { (took / spent).max(1.0) } else { 1.0 };
        let cost = |level: usize, compress: f64, besides: f64| {
            let (compress, ratio) = (compress * LEVELS[level].time, (ratio * LEVELS[level].size).min(1.0));
            (compress + besides).max(ratio * self.least) + ratio * link
        };
        let busy_cost = |level: usize| cost(level, compress * busy, compress * busy * BESIDES);
        let best = (FIRST..LEVELS.len()).min_by(|a, b| busy_cost(*a).total_cmp(&busy_cost(*b)));
        let best = best.unwrap_or(FIRST);
        // What compressing alone takes, not what this host has to do besides or instead: that goes on without it.
        let slower = (cost(best, compress, 0.0) - self.least - link) * self.left as f64;
        let plain =
            if self.level == 0 { slower > WORTH.as_secs_f64() / 4.0 } else { slower > WORTH.as_secs_f64() };
        let level = match plain {
            true if self.seen < SURE => return,
            true => 0,
            false if self.level == 0 || busy_cost(best) < BETTER * busy_cost(self.level) => best,
            false => return,
        };
        if level != self.level {
            self.level = level;
            // Another level is another stream.
            self.encoder = None;
        }
    }
}

/// The other end of it.
#[derive(Default)]
pub struct Decompressor {
    decoder: Option<Decoder<'static>>,
}

impl Decompressor {
    /// Fills `pages` with what `payload` was made of.
    ///
    /// # Errors
    /// If it is anything else than exactly so many bytes.
    pub fn decompress(&mut self, codec: Codec, payload: &[u8], pages: &mut [u8]) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a compressed block is damaged");
        debug_assert!(pages.len() <= MAX_BLOCK_PAGES * PAGE_SIZE);
        match codec {
            Codec::Plain => {
                if payload.len() != pages.len() {
                    return Err(damaged());
                }
                pages.copy_from_slice(payload);
                return Ok(());
            }
            Codec::NewZstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW))?;
                self.decoder = Some(decoder);
            }
            Codec::Zstd => {}
        }
        let decoder = self.decoder.as_mut().ok_or_else(damaged)?;
        let length = pages.len();
        let mut input = InBuffer::around(payload);
        let mut output = OutBuffer::around(pages);
        loop {
            let before = (input.pos(), output.pos());
            decoder.run(&mut input, &mut output).map_err(|_| damaged())?;
            if (input.pos(), output.pos()) == before {
                break;
            }
        }
        if input.pos() != payload.len() || output.pos() != length {
            return Err(damaged());
        }
        // Nothing more may be waiting inside than what was announced.
        let more: &mut [u8] = &mut [0];
        let mut output = OutBuffer::around(more);
        let _ = decoder.run(&mut InBuffer::around(&[]), &mut output);
        if output.pos() > 0 { Err(damaged()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(seed: u8, count: usize) -> Vec<u8> {
        (0..count * PAGE_SIZE).map(|i| (i as u8 ^ seed).wrapping_mul((i / 977) as u8)).collect()
    }

    #[test]
    fn a_stream_of_blocks_comes_back_whatever_the_level() {
        for level in 0..LEVELS.len() {
            let (mut compressor, mut decompressor) = (Compressor::default(), Decompressor::default());
            compressor.level = level;
            for seed in 0..20 {
                let before = pages(seed, 1 + usize::from(seed) % MAX_BLOCK_PAGES);
                let mut wire = Vec::new();
                let codec = compressor.compress(&before, &mut wire).unwrap();
                assert!(wire.len() <= MAX_PAYLOAD);
                let mut after = vec![0; before.len()];
                decompressor.decompress(codec, &wire, &mut after).unwrap();
                assert!(before == after);
            }
        }
    }

    #[test]
    fn random_pages_fit_a_payload() {
        let mut page = vec![0; MAX_BLOCK_PAGES * PAGE_SIZE];
        getrandom::fill(&mut page).unwrap();
        for level in 1..LEVELS.len() {
            let mut compressor = Compressor { level, ..Compressor::default() };
            let mut wire = Vec::new();
            compressor.compress(&page, &mut wire).unwrap();
            assert!(wire.len() <= MAX_PAYLOAD);
        }
    }

    #[test]
    fn a_slow_link_is_worth_more_work_and_a_fast_one_none() {
        let settle = |per_byte: f64, least: f64, left: u64| {
            let mut compressor =
                Compressor { compress: Some(2e-9), ratio: Some(0.4), ..Compressor::default() };
            for _ in 0..SURE + CHOOSE {
                compressor.sent(1 << 20, Duration::from_secs_f64(per_byte * f64::from(1 << 20)), least, left);
                compressor.choose();
            }
            compressor.level()
        };
        assert_eq!(settle(1e-10, 0.0, 1 << 30), 0);
        assert!(settle(1e-6, 0.0, 1 << 30) >= 3);
        // A cap counts although nobody has waited for it yet, and little is not worth sending more for.
        assert!(settle(1e-10, 1.6e-8, 1 << 30) >= 1);
        assert_eq!(settle(1e-10, 0.0, 15 << 20), 1);
    }

    #[test]
    fn what_is_sent_as_it_is_stays_so_until_little_is_left() {
        let mut compressor = Compressor { compress: Some(2e-9), ratio: Some(0.4), ..Compressor::default() };
        let mut after = |left: u64| {
            for _ in 0..SURE + CHOOSE {
                compressor.sent(1 << 20, Duration::from_micros(100), 0.0, left);
                compressor.choose();
            }
            compressor.level()
        };
        assert_eq!([after(1 << 30), after(15 << 20), after(1 << 20), after(15 << 20)], [0, 0, 1, 1]);
    }

    #[test]
    fn a_host_without_a_free_processor_compresses_less() {
        let settle = |waited: f64| {
            let mut compressor =
                Compressor { compress: Some(2e-9), ratio: Some(0.4), ..Compressor::default() };
            for _ in 0..CHOOSE * 4 {
                compressor.waited = (waited, 1.0);
                compressor.sent(1 << 20, Duration::from_micros(100), 5e-8, 1 << 30);
                compressor.choose();
            }
            compressor.level()
        };
        assert!(settle(1.0) > settle(8.0) && settle(8.0) == 1, "{} {}", settle(1.0), settle(8.0));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), fresh: bool) {
            let mut decompressor = Decompressor::default();
            let mut wire = Vec::new();
            let before = pages(1, 2);
            let codec = Compressor::default().compress(&before, &mut wire).unwrap();
            let mut after = vec![0; before.len()];
            decompressor.decompress(codec, &wire, &mut after).unwrap();
            let codec = if fresh { Codec::NewZstd } else { Codec::Zstd };
            let _ = decompressor.decompress(codec, &bytes, &mut after);
        }

        #[test]
        fn a_block_of_another_length_is_refused(less in 1usize..2 * PAGE_SIZE) {
            let mut wire = Vec::new();
            let before = pages(1, 2);
            let codec = Compressor::default().compress(&before, &mut wire).unwrap();
            let mut after = vec![0; before.len() - less];
            prop_assert!(Decompressor::default().decompress(codec, &wire, &mut after).is_err());
        }
    }
}
