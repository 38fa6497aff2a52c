use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 64 * 4096;

/// Two hosts and the link between them: nanoseconds a byte.
#[derive(Debug, Clone, Copy)]
struct World {
    compress: f64,
    ratio: f64,
    besides: f64,
    link: f64,
    cap: f64,
    /// What the destination does with a byte of memory that came compressed, and as it is.
    decompress: f64,
    take: f64,
}

/// Bytes that the two sockets hold.
const BETWEEN: usize = 1 << 20;

impl World {
    /// Seconds until `memory` bytes are there, bytes on the wire, and the level in the middle. `fixed`: at this level all the time.
    fn send(&self, memory: usize, fixed: Option<usize>) -> (f64, usize, i32) {
        let choice = Choice { level: fixed.unwrap_or(FIRST), ..Choice::default() };
        self.send_with(memory, choice, fixed.is_some())
    }

    fn send_with(&self, memory: usize, mut choice: Choice, fixed: bool) -> (f64, usize, i32) {
        let (mut now, mut wire, mut link_free, mut taken) = (0.0f64, 0, 0.0f64, 0.0f64);
        let mut between: VecDeque<(usize, f64)> = VecDeque::new();
        let mut middle = choice.level();
        for block in 0..memory / BLOCK {
            if !fixed {
                choice.choose();
            }
            if block == memory / BLOCK / 2 {
                middle = choice.level();
            }
            let (begun, level) = (now, LEVELS[choice.level]);
            let bytes = BLOCK as f64 * 1e-9;
            let time = self.compress * level.time * bytes;
            now += self.besides * bytes + time;
            let size = if level.zstd == 0 { 1.0 } else { (self.ratio * level.size).min(1.0) };
            let length = (BLOCK as f64 * size) as usize;
            if level.zstd > 0 {
                choice.compressed(
                    BLOCK,
                    length,
                    Duration::from_secs_f64(time),
                    Duration::from_secs_f64(time),
                );
            }
            now = now.max(begun + self.cap * length as f64 * 1e-9);
            let written = now;
            link_free = link_free.max(now) + self.link * length as f64 * 1e-9;
            let work = if level.zstd == 0 { self.take } else { self.decompress };
            taken = taken.max(link_free) + work * bytes;
            between.push_back((length, taken));
            wire += length;
            while between.iter().map(|(length, _)| length).sum::<usize>() > BETWEEN {
                now = now.max(between.pop_front().expect("not empty").1);
            }
            while between.front().is_some_and(|(_, done)| *done <= now) {
                between.pop_front();
            }
            choice.sent(&Sent {
                memory: BLOCK,
                wire: length,
                link: Duration::from_secs_f64(now - written),
                whole: Duration::from_secs_f64(now - begun),
                least: self.cap * 1e-9,
                left: (memory - (block + 1) * BLOCK) as u64,
            });
        }
        (taken, wire, middle)
    }
}

const DATACENTRE: World =
    World { compress: 2.0, ratio: 0.37, besides: 0.8, link: 0.1, cap: 0.0, decompress: 1.2, take: 0.6 };

#[test]
fn a_fast_link_gets_pages_as_they_are() {
    assert_eq!(DATACENTRE.send(512 << 20, None).2, 0);
}

#[test]
fn so_it_does_when_the_destination_is_what_takes_the_time() {
    let busy = World { decompress: 4.0, take: 2.0, ..DATACENTRE };
    assert_eq!(busy.send(512 << 20, None).2, 0);
}

#[test]
fn what_little_there_is_is_compressed() {
    let (_, wire, level) = DATACENTRE.send(36 << 20, None);
    assert!(level >= 1 && wire < 15 << 20, "{level} {wire}");
}

#[test]
fn who_asks_for_fewest_bytes_gets_them_and_who_asks_for_none_compressed_gets_that() {
    let (_, wire, level) = DATACENTRE.send_with(512 << 20, Choice::new(Compression::Zstd), false);
    assert!(level >= 1 && wire < 200 << 20, "{level} {wire}");
    let slow = World { link: 100.0, ..DATACENTRE };
    let (_, wire, level) = slow.send_with(512 << 20, Choice::new(Compression::None), false);
    assert_eq!((wire, level), (512 << 20, 0));
}

/// A slow host: much time could be saved, but the trial would be a good part of what there is.
#[test]
fn a_trial_is_not_most_of_what_is_sent() {
    let slow = World { compress: 10.0, besides: 4.0, ..DATACENTRE };
    let (_, wire, level) = slow.send(40 << 20, None);
    assert!(level >= 1 && wire < 16 << 20, "{level} {wire}");
    assert_eq!(slow.send(512 << 20, None).2, 0, "where there is more of it, it is tried");
}

/// A token bucket that has filled up while pages were compressed lets plain ones pass at once, for a while.
#[test]
fn what_a_cap_has_saved_up_is_not_taken_for_a_fast_link() {
    // A trial has just begun.
    let (compress, compressed) =
        (Some(10e-9), Clock { seconds: 17.2e-9 * BLOCK as f64, bytes: BLOCK as f64 });
    let mut choice = Choice { level: 0, compress, ratio: Some(0.4), compressed, ..Choice::default() };
    let mut plain = 0;
    for _ in 0..SURE + 4 * TRIAL {
        let as_it_is = choice.level() == 0;
        plain += u32::from(as_it_is);
        choice.sent(&Sent {
            memory: BLOCK,
            wire: if as_it_is { BLOCK } else { BLOCK * 2 / 5 },
            link: Duration::from_micros(30),
            // 3 ns a byte as it is, 17.2 compressed; the cap allows 17.5 in the long run.
            whole: Duration::from_micros(if as_it_is { 800 } else { 4500 }),
            least: 17.5e-9,
            left: 1 << 30,
        });
        choice.choose();
    }
    assert!(plain > 0 && plain <= TRIAL + CHOOSE, "{plain} blocks were sent as they are");
}

/// Blocks of a host's two kinds, as the clock sees them: microseconds compressed, and as they are by turns (a burst, and what it has to wait after it).
fn levels(blocks: u32, compressed: impl Fn(u32) -> u64, plain: impl Fn(u32) -> u64) -> Vec<i32> {
    let mut choice = Choice::default();
    let mut levels = Vec::new();
    for block in 0..blocks {
        choice.choose();
        levels.push(choice.level());
        let micros = if choice.level() == 0 { plain(block) } else { compressed(block) };
        if choice.level() > 0 {
            let half = Duration::from_micros(micros / 2);
            choice.compressed(BLOCK, BLOCK / 3, half, half);
        }
        choice.sent(&Sent {
            memory: BLOCK,
            wire: if choice.level() == 0 { BLOCK } else { BLOCK / 3 },
            link: Duration::from_micros(if choice.level() == 0 { micros / 2 } else { 30 }),
            whole: Duration::from_micros(micros),
            least: 0.0,
            left: 1 << 30,
        });
    }
    levels
}

#[test]
fn a_burst_is_no_rate_and_neither_is_what_comes_after_it() {
    // 1,700 microseconds compressed; as it is 150, and 10,000 for every sixteenth: 766.
    let levels = levels(400, |_| 1_700, |block| if block % 16 == 15 { 10_000 } else { 150 });
    assert!(levels[64..].iter().all(|level| *level == 0), "{levels:?}");
}

#[test]
fn what_was_easy_to_compress_at_first_is_not_taken_for_all_of_it() {
    let levels = levels(400, |block| if block < 64 { 600 } else { 1_800 }, |_| 900);
    assert!(levels[SURE as usize..64].contains(&0), "tried: {levels:?}");
    assert!(levels[64..100].iter().any(|level| *level > 0), "and given up: {levels:?}");
    assert!(levels[240..].iter().all(|level| *level == 0), "and tried again: {levels:?}");
}

#[test]
fn a_slow_link_is_worth_more_work() {
    let slow = World { link: 1000.0, ..DATACENTRE };
    assert!(slow.send(64 << 20, None).2 >= 3);
}

#[test]
fn a_cap_counts_although_nobody_has_waited_for_it_yet() {
    let capped = World { cap: 16.0, ..DATACENTRE };
    let (_, wire, level) = capped.send(512 << 20, None);
    assert!(level >= 1 && wire < 200 << 20, "{level} {wire}");
}

#[test]
fn what_does_not_get_smaller_is_sent_as_it_is() {
    let random = World { ratio: 1.0, link: 1.0, ..DATACENTRE };
    assert_eq!(random.send(512 << 20, None).2, 0);
}

#[test]
fn at_the_end_of_a_round_little_is_compressed_again() {
    let mut choice = Choice::default();
    choice.compressed(BLOCK, BLOCK / 3, Duration::from_micros(500), Duration::from_micros(500));
    let mut after = |left: u64| {
        for _ in 0..SURE + TRIAL + CHOOSE {
            let micros = if choice.level() == 0 { 300 } else { 800 };
            choice.sent(&Sent {
                memory: BLOCK,
                wire: if choice.level() == 0 { BLOCK } else { BLOCK / 3 },
                link: Duration::from_micros(30),
                whole: Duration::from_micros(micros),
                least: 0.0,
                left,
            });
            choice.choose();
        }
        choice.level()
    };
    assert_eq!([after(1 << 30), after(15 << 20), after(1 << 20), after(15 << 20)], [0, 0, 1, 1]);
}

#[test]
fn a_host_without_a_free_processor_compresses_less() {
    let settle = |waited: f64| {
        let mut choice = Choice { compress: Some(2e-9), ratio: Some(0.4), ..Choice::default() };
        for _ in 0..CHOOSE * 4 {
            choice.waited = (waited, 1.0);
            choice.sent(&Sent {
                memory: BLOCK,
                wire: BLOCK * 2 / 5,
                link: Duration::from_micros(10),
                whole: Duration::from_micros(800),
                least: 5e-8,
                left: 1 << 30,
            });
            choice.choose();
        }
        choice.level()
    };
    assert!(settle(1.0) > settle(8.0) && settle(8.0) == 1, "{} {}", settle(1.0), settle(8.0));
}

proptest! {
    /// Whatever hosts and link are like, the choice is hardly worse than the better of always and never, but for what fewer bytes are worth.
    #[test]
    fn never_much_slower_than_always_or_never(
        compress in 1.0..10.0f64,
        ratio in 0.2..1.0f64,
        besides in 0.3..0.6f64,
        link in prop_oneof![0.05..2.0f64, 2.0..50.0f64],
        decompress in 0.2..1.5f64,
        take in 0.2..1.0f64,
    ) {
        let world = World {
            compress,
            ratio,
            besides: besides * compress,
            link,
            cap: 0.0,
            decompress: decompress * compress,
            take: take * decompress * compress,
        };
        let memory = 1 << 30;
        let (time, ..) = world.send(memory, None);
        let (always, ..) = world.send(memory, Some(FIRST));
        let (never, ..) = world.send(memory, Some(0));
        prop_assert!(time < 1.1 * always.min(never) + WORTH, "{time} of {always} and {never}");
    }
}
