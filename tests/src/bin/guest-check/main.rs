//! `memdex-check`: runs in a guest, writes memory all the time and checks that it holds what was written. Whoever moves
//! the guest and gets one page wrong, old or lost makes it say so, for ever.
//!
//! It prints one line a second, `MEMDEX-CHECK ok PAGES-CHECKED PAGES-WRITTEN SWEEPS` or `MEMDEX-CHECK BAD …`. What to do
//! is told on the kernel command line: `memdex.check=MIB`, `memdex.check_rate=PAGES-A-SECOND` (0: as many as it can),
//! `memdex.check_hot=PAGES` (that are written all the time), `memdex.seed=NUMBER`. Built by itself, without any crate,
//! as a static program, so that it runs in a guest without libraries.

mod area;
mod content;
mod registers;

use std::{
    fs,
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use area::Area;
use content::{Content, Page, mix};
use registers::Counter;

/// A turn, if the rate is bounded.
const TURN: Duration = Duration::from_millis(10);
/// Turns in which every page is checked once, if the rate is bounded.
const SWEEP_TURNS: usize = 100;
/// One of so many writes gives the page back instead.
const GIVE_BACK: u64 = 16;
/// State of a page that was given back, in the table of sequences.
const GIVEN_BACK: u32 = 1 << 31;

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    mib: usize,
    rate: u64,
    hot: usize,
    seed: u64,
}

impl Settings {
    fn parse(command_line: &str) -> Self {
        let mut settings = Self { seed: 1, ..Self::default() };
        for word in command_line.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else { continue };
            let number = value.parse::<u64>().unwrap_or(0);
            match name {
                "memdex.check" => settings.mib = number as usize,
                "memdex.check_rate" => settings.rate = number,
                "memdex.check_hot" => settings.hot = number as usize,
                "memdex.seed" => settings.seed = number,
                _ => {}
            }
        }
        settings
    }
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    checked: u64,
    written: u64,
    sweeps: u64,
}

/// The memory, and what should be in it.
struct Check {
    settings: Settings,
    area: Area,
    /// How often each page was written, in memory that is apart from the pages.
    sequences: Vec<u32>,
    /// Two pages for a counter whose third place is a register.
    counters: [Area; 2],
    counter: Counter,
    /// Decides which page is next.
    chance: u64,
    /// Next page of the sweep.
    next: usize,
    done: Done,
}

type Bad = String;

impl Check {
    fn new(settings: Settings) -> Option<Self> {
        let area = Area::new((settings.mib << 8).max(settings.hot + 1))?;
        let sequences = vec![0; area.len()];
        let (counters, chance) = ([Area::new(1)?, Area::new(1)?], mix(settings.seed));
        let (counter, done) = (Counter::default(), Done::default());
        let mut check = Self { settings, area, sequences, counters, counter, chance, next: 0, done };
        for index in 0..check.area.len() {
            check.write(index);
        }
        Some(check)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.chance = self.chance.wrapping_add(1);
        (mix(self.chance) % bound as u64) as usize
    }

    fn content(&self, index: usize) -> Content {
        let sequence = self.sequences[index];
        if sequence & GIVEN_BACK == 0 {
            Content::new(index as u64, u64::from(sequence), self.settings.seed)
        } else {
            Content::ZERO
        }
    }

    fn write(&mut self, index: usize) {
        self.sequences[index] = (self.sequences[index] & !GIVEN_BACK) % (GIVEN_BACK - 1) + 1;
        self.content(index).write(self.area.page_mut(index));
        self.done.written += 1;
    }

    fn write_any(&mut self) {
        let hot = self.settings.hot;
        let index = hot + self.below(self.area.len() - hot);
        if mix(self.chance ^ 1).is_multiple_of(GIVE_BACK) && self.area.give_back(index) {
            self.sequences[index] |= GIVEN_BACK;
            self.done.written += 1;
        } else {
            self.write(index);
        }
    }

    fn check(&mut self, index: usize) -> Result<(), Bad> {
        self.done.checked += 1;
        let page: &Page = self.area.page(index);
        let Some((place, expected, found)) = self.content(index).differs(page) else { return Ok(()) };
        let sequence = self.sequences[index];
        let state = if sequence & GIVEN_BACK == 0 { "written" } else { "given back after" };
        Err(format!(
            "page {index} word {place}: expected {expected:#x} ({state} {}), found {found:#x}; it begins {:#x} {} {}",
            sequence & !GIVEN_BACK,
            page[0],
            page[1],
            page[2]
        ))
    }

    /// Checks so many pages of the sweep.
    fn sweep(&mut self, count: usize) -> Result<(), Bad> {
        for _ in 0..count {
            self.check(self.next)?;
            self.next = (self.next + 1) % self.area.len();
            self.done.sweeps += u64::from(self.next == 0);
        }
        Ok(())
    }

    fn turn(&mut self, writes: usize, sweep: usize) -> Result<(), Bad> {
        for index in 0..self.settings.hot {
            self.write(index);
        }
        for _ in 0..writes {
            self.write_any();
        }
        for _ in 0..8 {
            let index = self.below(self.area.len());
            self.check(index)?;
        }
        self.sweep(sweep)?;
        let [first, second] = &mut self.counters;
        let (first, second) = (&mut first.page_mut(0)[0], &mut second.page_mut(0)[1]);
        let counted = self.counter.count(first, second, 256);
        counted.map_err(|[register, first, second]| {
            format!("page none: the CPU has counted to {register}, expected the same in memory, found {first} and {second}")
        })
    }
}

fn main() {
    let settings = Settings::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    if settings.mib == 0 {
        return;
    }
    let line = match Check::new(settings) {
        Some(check) => run(check),
        None => "page none: there is not so much memory".to_owned(),
    };
    loop {
        say(&format!("BAD {line}"));
        thread::sleep(Duration::from_secs(1));
    }
}

/// Goes on until something is wrong.
fn run(mut check: Check) -> Bad {
    let begun = Instant::now();
    let (mut last, mut printed, mut due_before) = (begun, begun, 0);
    loop {
        let now = Instant::now();
        if now < last {
            return format!("page none: the clock ran back by {:?}", last - now);
        }
        last = now;
        let (writes, sweep) = match check.settings.rate {
            0 => (32, 32),
            rate => {
                // What a guest that stood still did not write it need not catch up with.
                let due = begun.elapsed().as_millis() as u64 * rate / 1000;
                let writes = (due - due_before).min(rate / 20 + 1);
                due_before = due;
                (writes as usize, check.area.len().div_ceil(SWEEP_TURNS))
            }
        };
        if let Err(bad) = check.turn(writes, sweep) {
            return bad;
        }
        if now.duration_since(printed) >= Duration::from_secs(1) {
            printed = now;
            let Done { checked, written, sweeps } = check.done;
            say(&format!("ok {checked} {written} {sweeps}"));
        }
        if check.settings.rate > 0 {
            thread::sleep(TURN.saturating_sub(now.elapsed()));
        }
    }
}

/// One line in one write, so that nothing comes between.
fn say(text: &str) {
    // Nobody could be told that the console is gone.
    let _ = std::io::stdout().write_all(format!("MEMDEX-CHECK {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_from_the_kernel_command_line() {
        let settings =
            Settings::parse("quiet memdex.check=64 memdex.check_rate=100 memdex.seed=9 memdex.check_hot=3 x");
        assert_eq!(settings, Settings { mib: 64, rate: 100, hot: 3, seed: 9 });
        assert_eq!(Settings::parse("quiet").mib, 0);
    }

    #[test]
    fn what_was_written_and_given_back_is_right_and_a_change_is_found() {
        let mut check = Check::new(Settings { mib: 1, rate: 0, hot: 2, seed: 3 }).unwrap();
        for _ in 0..100 {
            check.turn(32, 256).unwrap();
        }
        assert_eq!(check.done.sweeps, 100);
        assert!(check.sequences.iter().any(|sequence| sequence & GIVEN_BACK != 0), "some are given back");
        check.area.page_mut(77)[300] ^= 1;
        let bad = check.sweep(256).unwrap_err();
        assert!(bad.starts_with("page 77 word 300: expected"), "{bad}");
    }
}
