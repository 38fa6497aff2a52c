//! How hard a data connection compresses: the level that makes sending fastest, or none.
//!
//! Owns the choice and what it rests on; knows nothing of zstd but what its levels cost.
//!
//! # Among the levels
//!
//! A connection compresses and sends by turns, but it compresses while it would have to wait for the cap anyway. So a byte of memory costs
//! `max(compress(level), ratio(level) · cap) + ratio(level) · link` seconds, where `link` is what a byte on the wire takes, without that wait: the worst
//! that was seen lately (a link that is not full looks faster than it is). What has been measured is used, what has not been is scaled from its
//! neighbour by what is typical of zstd. Compressing is measured in the processor's time, and made longer by what the thread lately had to wait for
//! one; and half of what level 1 takes is added for what else this host has to do to send a page. The level that costs least is taken, if it is better
//! by a few percent.
//!
//! # None at all
//!
//! On a link faster than zstd nothing should be compressed. The model above can't tell, because a destination that is busy (with decompressing,
//! hashing, writing) looks like a slow link, and one that is slow for each byte on the wire, which it is not. So the model only says whether sending pages as they are is worth a
//! *trial*; then the clock says what a byte of memory took in all, compressed and as it is, and the faster way is kept for as long as the clock
//! says so. While pages go as they are, compressing them counts for what it took before.
//! Who asks for compression always, or never, gets that: then only the level is chosen, or nothing.
//! Fewer bytes are worth something to everybody else on the link, so there is no trial where less than [`WORTH`] could be saved in all, nor
//! where the trial itself would be more than a small part of what is left.

use std::time::Duration;

use memdex_wire::migration::Compression;

/// Blocks between two choices.
const CHOOSE: u32 = 8;
/// Time that fewer bytes on the wire may cost, over all that is still to be sent by a connection.
const WORTH: f64 = 0.1;
/// Once pages are sent as they are, they are for as long as that saves so much.
const STILL_WORTH: f64 = WORTH / 16.0;
/// Blocks until it is known how much there is to send.
const SURE: u32 = 32;
/// Blocks of a trial. The first ones are not counted, here and after it: they only fill what is between the two hosts, or wait for what the ones before left there.
const TRIAL: u32 = 24;
/// A trial that fails has made its bytes for nothing: there is one only where it is less than such a part of what is left.
const TRIAL_PART: u64 = 8;
const NOT_COUNTED: u32 = 8;
/// Blocks after a trial that failed before there is another one: twice as many after each. What came before it may have been easy to compress, and what comes now not.
const NOT_AGAIN: u32 = 64;
/// A trial ends early when it is slower by so much.
const HOPELESS: f64 = 1.2;
/// How much slower than compressing the model may call sending pages as they are, for that to be tried: where the link is what takes the time, there is no doubt.
const DOUBT: f64 = 2.0;
/// How much of the worst a link was seen to take is remembered from block to block.
const MEMORY: f64 = 0.99;
/// Weight of the latest block in what is remembered.
const WEIGHT: f64 = 0.2;
/// How much of what the clock said is remembered from block to block. The sockets and the destination take blocks by bursts, so it takes some dozen of them to
/// know a rate.
const CLOCK: f64 = 0.96;
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

/// A block that is on its way, as a connection saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Bytes of memory in it, and what became of them.
    pub(super) memory: usize,
    pub(super) wire: usize,
    /// What the link took for it, and all of it: reading, hashing, compressing, waiting for the cap, the link.
    pub(super) link: Duration,
    pub(super) whole: Duration,
    /// Seconds that a byte on the wire takes at least, by a cap.
    pub(super) least: f64,
    /// Bytes of memory that this connection has still to send, as far as that is known.
    pub(super) left: u64,
}

/// One connection's choice.
#[derive(Debug)]
pub(super) struct Choice {
    wanted: Compression,
    level: usize,
    /// Since the last choice, and in all.
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
    /// What memory took in all: compressed, and as it is.
    compressed: Clock,
    plain: Clock,
    /// Blocks sent as they are since that was begun, or compressed; and how many blocks there have to have been before the former is tried again.
    since: u32,
    again: u32,
    failed: u32,
    least: f64,
    left: u64,
    /// Bytes of memory in the largest block.
    block: u64,
}

/// What the clock said of late.
#[derive(Debug, Clone, Copy, Default)]
struct Clock {
    seconds: f64,
    bytes: f64,
}

impl Clock {
    fn add(&mut self, seconds: f64, bytes: f64) {
        self.seconds = self.seconds * CLOCK + seconds;
        self.bytes = self.bytes * CLOCK + bytes;
    }

    /// Seconds for each byte, if it has said anything.
    fn rate(&self) -> Option<f64> {
        (self.bytes > 0.0).then(|| self.seconds / self.bytes)
    }
}

fn blend(old: Option<f64>, new: f64) -> Option<f64> {
    Some(old.map_or(new, |old| old + WEIGHT * (new - old)))
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            wanted: Compression::Auto,
            level: FIRST,
            blocks: 0,
            seen: 0,
            compress: None,
            waited: (0.0, 0.0),
            ratio: None,
            lately: None,
            link: None,
            compressed: Clock::default(),
            plain: Clock::default(),
            since: 0,
            again: SURE,
            failed: 0,
            least: 0.0,
            left: 0,
            block: 0,
        }
    }
}

impl Choice {
    /// One for each level, with none first.
    #[cfg(test)]
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..LEVELS.len()).map(|level| Self { level, ..Self::default() })
    }

    /// What was asked for, before anything is known.
    pub(super) fn new(wanted: Compression) -> Self {
        let level = if wanted == Compression::None { 0 } else { FIRST };
        Self { wanted, level, ..Self::default() }
    }

    /// zstd's name for the level in use; 0 is none.
    pub(super) fn level(&self) -> i32 {
        LEVELS[self.level].zstd
    }

    /// Says what compressing a block at this level took, in all and on a processor, and what became of it.
    pub(super) fn compressed(&mut self, memory: usize, wire: usize, took: Duration, spent: Duration) {
        let (took, spent, memory) = (took.as_secs_f64(), spent.as_secs_f64(), memory.max(1) as f64);
        let level = LEVELS[self.level];
        self.waited = (self.waited.0 * MEMORY + took, self.waited.1 * MEMORY + spent);
        self.compress = blend(self.compress, spent / memory / level.time);
        self.ratio = blend(self.ratio, wire as f64 / memory / level.size);
    }

    /// Says what sending a block took.
    pub(super) fn sent(&mut self, sent: &Sent) {
        let seen = sent.link.as_secs_f64() / sent.wire.max(1) as f64;
        self.lately = blend(self.lately, seen);
        let lately = self.lately.unwrap_or(seen);
        self.link = Some(self.link.map_or(lately, |worst| lately.max(worst * MEMORY)));
        let (whole, memory) = (sent.whole.as_secs_f64(), sent.memory.max(1) as f64);
        self.since = self.since.saturating_add(1);
        if self.since > NOT_COUNTED {
            let clock = if self.level > 0 { &mut self.compressed } else { &mut self.plain };
            clock.add(whole, memory);
        }
        (self.least, self.left) = (sent.least, sent.left);
        self.block = self.block.max(sent.memory as u64);
    }

    /// Chooses the level of the next block. Returns whether it is another one.
    pub(super) fn choose(&mut self) -> bool {
        if self.wanted == Compression::None {
            return false;
        }
        self.blocks += 1;
        self.seen = self.seen.saturating_add(1);
        let (Some(compress), Some(ratio), Some(link)) = (self.compress, self.ratio, self.link) else {
            return false;
        };
        if self.blocks < CHOOSE {
            return false;
        }
        self.blocks = 0;
        let (took, spent) = self.waited;
        let busy = if spent > 0.0 { (took / spent).max(1.0) } else { 1.0 };
        let besides = compress * busy * BESIDES;
        let cost = |level: usize| {
            let (time, ratio) = (compress * busy * LEVELS[level].time, (ratio * LEVELS[level].size).min(1.0));
            (time + besides).max(ratio * self.least) + ratio * link
        };
        let best = (FIRST..LEVELS.len()).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(FIRST);
        let level = if self.level == 0 {
            if self.plain_is_faster() { 0 } else { best }
        } else if self.worth_a_trial(besides.max(self.least) + link, cost(best)) {
            self.plain = Clock::default();
            0
        } else if cost(best) < BETTER * cost(self.level) {
            best
        } else {
            self.level
        };
        if self.level == 0 && level > 0 {
            self.again = self.seen.saturating_add(NOT_AGAIN << self.failed.min(8));
            // Not if there is just too little left.
            self.failed = self.failed.saturating_add(u32::from(self.plain.rate() > self.compressed.rate()));
        }
        if (self.level == 0) != (level == 0) {
            self.since = 0;
        }
        std::mem::replace(&mut self.level, level) != level
    }

    /// Whether pages might be sent faster as they are. `plain` and `compressed` are what the model says that a byte of memory takes; as what is saved it is
    /// believed only if that is more than half of what the clock says, because it makes a busy destination dearer than it is; a cap is believed as it is.
    fn worth_a_trial(&self, plain: f64, compressed: f64) -> bool {
        let seen = self.compressed.rate().unwrap_or(0.0);
        let hoped = plain.min(seen * 0.5).max(self.least);
        self.wanted == Compression::Auto
            && self.seen >= self.again
            && plain < DOUBT * compressed
            && self.block * u64::from(TRIAL) * TRIAL_PART < self.left
            && (seen - hoped) * self.left as f64 > WORTH
    }

    /// Whether the clock says that sending pages as they are is faster, and there is enough left for that to matter. During the trial it is not asked.
    /// What a cap has saved up lets a trial pass faster than the cap for a while: that is not what it would be like to the end.
    fn plain_is_faster(&self) -> bool {
        let (Some(compressed), Some(plain)) = (self.compressed.rate(), self.plain.rate()) else {
            return true;
        };
        let plain = plain.max(self.least);
        if self.since < TRIAL {
            return plain < HOPELESS * compressed;
        }
        (compressed - plain) * self.left as f64 > STILL_WORTH
    }
}

#[cfg(test)]
mod tests;
