//! When pages that are written all the time are read again: the daemon's own queue beside simpler rules, with four patterns of writes.
//!
//! Owns the simulation. Time is counted in the daemon's ticks, nothing is timed, and every run gives the same: what is compared are the faults that a guest takes (a
//! page that is read is armed, and the next write to it faults), and how much of what was written is not known. The queue is the daemon's own code;
//! guests, kernel and hashing are not there, so that the rules differ in nothing else.

mod patterns;
mod policies;

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use indexer::watch::tracker::TrackerOptions;
use roaring::RoaringBitmap;

use crate::figure::{Bound, Figures};
use patterns::{PAGES, Pattern, RATE, Writes};
use policies::{ALL, Policy};

pub(crate) const NAME: &str = "hot_pages_better_rules";

/// Seconds that are left out at the beginning, and those that count.
const WARM_UP: u32 = 20;
const SECONDS: u32 = 100;

/// What became of a policy with a pattern.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Faults a second; as many pages are read.
    faults: f64,
    /// Pages that are stale at any time, on average.
    stale: f64,
    /// Milliseconds from the last write to a page until it was read, of pages that have become quiet: not written again within [`QUIET`].
    late_p50_ms: f64,
    late_p99_ms: f64,
}

const QUIET: Duration = Duration::from_secs(2);

pub(crate) fn measure(figures: &mut Figures, docs: Option<&Path>) {
    eprintln!("rules for hot pages: {} of them with {} patterns", ALL.len(), Pattern::ALL.len());
    let seen: Vec<(Pattern, Vec<Outcome>)> = Pattern::ALL
        .into_iter()
        .map(|pattern| (pattern, ALL.iter().map(|(_, policy)| simulate(pattern, &mut *policy())).collect()))
        .collect();
    let text = table(&seen);
    print!("{text}");
    if let Some(folder) = docs {
        fs::write(folder.join("hot-pages.md"), text).expect("the table can be written");
    }
    let better = |rule: &usize| {
        let with = |wanted: fn(&Outcome, &Outcome) -> bool| {
            move |(_, outcomes): &(Pattern, Vec<Outcome>)| wanted(&outcomes[*rule], &outcomes[0])
        };
        seen.iter().all(with(Outcome::as_good_as)) && seen.iter().any(with(Outcome::better_than))
    };
    let better = (1..ALL.len()).filter(better).count();
    figures.add(
        NAME,
        better as f64,
        "rules",
        Bound::AtMost(0.0),
        format!(
            "of {} other rules those that are as good with each of {} patterns and better with one, in faults and in stale pages",
            ALL.len() - 1,
            Pattern::ALL.len()
        ),
    );
}

impl Outcome {
    /// Neither more faults nor more stale pages, but for what is nothing to a guest or a migration.
    fn as_good_as(&self, other: &Self) -> bool {
        self.faults <= 1.02 * other.faults && self.stale <= 1.02 * other.stale + 16.0
    }

    /// A tenth less of something.
    fn better_than(&self, other: &Self) -> bool {
        self.faults < 0.9 * other.faults || self.stale + 16.0 < 0.9 * other.stale
    }
}

/// What is known of a page.
#[derive(Debug, Clone, Copy, Default)]
struct Page {
    stale: bool,
    /// Ticks at which it was written last, and read first after that; 0: not yet.
    written: u32,
    read: u32,
}

fn simulate(pattern: Pattern, policy: &mut dyn Policy) -> Outcome {
    let tick = TrackerOptions::default().tick;
    let ticks_a_second = (Duration::from_secs(1).as_nanos() / tick.as_nanos()) as u32;
    let quiet = (QUIET.as_nanos() / tick.as_nanos()) as u32;
    let mut pages = vec![Page::default(); PAGES as usize];
    let mut writes = Writes::new(pattern);
    let (mut faults, mut stale, mut stale_ticks) = (0u64, 0u64, 0u64);
    let mut late = Vec::new();
    for now in 1..=(WARM_UP + SECONDS) * ticks_a_second {
        let counts = now > WARM_UP * ticks_a_second;
        let mut newly = RoaringBitmap::new();
        for _ in 0..RATE / ticks_a_second {
            let number = writes.next();
            let page = &mut pages[number as usize];
            // It was quiet for a while: how late it was known can be told.
            if counts && page.read > 0 && now - page.written > quiet {
                late.push(page.read - page.written);
            }
            if !page.stale {
                page.stale = true;
                stale += 1;
                faults += u64::from(counts);
                newly.insert(number);
            }
            (page.written, page.read) = (now, 0);
        }
        policy.written(&newly);
        let due = policy.due();
        for number in &due {
            let page = &mut pages[number as usize];
            assert!(page.stale, "what is current is not read");
            (page.stale, page.read) = (false, now + 1);
        }
        stale -= due.len();
        policy.published(&due);
        stale_ticks += if counts { stale } else { 0 };
        if now.is_multiple_of(ticks_a_second) {
            policy.rotate();
        }
    }
    // Those that were quiet at the end.
    let end = (WARM_UP + SECONDS) * ticks_a_second;
    let quiet_pages = pages.iter().filter(|page| page.read > 0 && end - page.written > quiet);
    late.extend(quiet_pages.map(|page| page.read - page.written));
    late.sort_unstable();
    let late_ms = |share: f64| {
        let at = (late.len().saturating_sub(1) as f64 * share) as usize;
        late.get(at).map_or(f64::NAN, |ticks| f64::from(*ticks) * tick.as_secs_f64() * 1e3)
    };
    Outcome {
        faults: faults as f64 / f64::from(SECONDS),
        stale: stale_ticks as f64 / f64::from(SECONDS * ticks_a_second),
        late_p50_ms: late_ms(0.5),
        late_p99_ms: late_ms(0.99),
    }
}

fn table(seen: &[(Pattern, Vec<Outcome>)]) -> String {
    let mut text = format!(
        "# Hot pages: when is what was written read again?

`cargo xtask bench --only {NAME} --docs docs` writes this page anew, in some seconds; it gives the same each time.

A page that is read is armed, and its next write costs the guest a fault. A page that is not read stays *stale*: writes to it cost nothing, and nobody knows what it holds. So pages that are
written all the time should be left alone, and all others read soon. The daemon reads a page at the next tick (50 ms) after a write was seen; if it is written again within one to two seconds after that, the delay doubles
each time, up to 64 ticks. Simulated here, with the daemon's own queue: a guest of 1 GiB and {RATE} writes a second for {SECONDS} s.
*Faults* are a second's, and as many pages are read and hashed; *stale* pages are what a migration would have to read while the guest stands still; *late* is how long after its last write
a page that has become quiet (no write for 2 s) is known, the median and the 99th of a hundred.

No rule is best everywhere. Reading at once makes a guest pay for each write to its hottest pages; any fixed delay leaves thousands of pages stale that are written only now and then. With *phases* a fixed delay of half a second leaves
a third fewer pages stale for a tenth more faults, and a delay that grows faster has fewer faults; with *zipf*, which is what guests are like, the one leaves three times as many pages stale, and the other knows pages that become quiet nearly three times later. Doubling is the rule that is never far from the best.

"
    );
    for (pattern, outcomes) in seen {
        let (name, words) = pattern.words();
        let _ = writeln!(text, "## {name}: {words}\n");
        text.push_str("| rule | faults | stale | late | late, p99 |\n|---|--:|--:|--:|--:|\n");
        for ((policy, _), outcome) in ALL.iter().zip(outcomes) {
            let Outcome { faults, stale, late_p50_ms, late_p99_ms } = outcome;
            let ms = |ms: &f64| if ms.is_nan() { "–".to_owned() } else { format!("{ms:.0} ms") };
            let _ = writeln!(
                text,
                "| {policy} | {faults:.0} | {stale:.0} | {} | {} |",
                ms(late_p50_ms),
                ms(late_p99_ms)
            );
        }
        text.push('\n');
    }
    text
}
