//! What has been counted, and the report it becomes.

use std::{collections::BTreeSet, fmt, time::Duration};

use memdex_tests::contract::State;
use serde_json::{Value, json};

use crate::arguments::Arguments;

/// Mismatches that are described.
const EXAMPLES: usize = 16;

/// Counts, added up over keepers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Pages seen, as [`State`] counts them. A stale one claims nothing, and is no check.
    pub(crate) states: [u64; 4],
    /// Of the checks, those after a sync; the others are of what the map said by itself.
    pub(crate) synced: u64,
    /// Pages that the judge hashed anew; the others had the bytes they had when it hashed them before.
    pub(crate) hashed: u64,
    /// Whole maps compared.
    pub(crate) comparisons: u64,
    /// Pages that were wrong.
    pub(crate) mismatches: u64,
    /// The first of them, in words.
    pub(crate) examples: Vec<String>,
    /// Guests started.
    pub(crate) guests: u64,
    /// Guests that KVM gave up on, and what their VMMs said.
    pub(crate) given_up: u64,
    pub(crate) last_words: BTreeSet<String>,
    /// Things done to guests.
    pub(crate) acts: u64,
    /// Daemons that were told to end.
    pub(crate) stopped: u64,
    /// Daemons that were killed.
    pub(crate) killed: u64,
    /// Pages that the daemons' own audit has checked.
    pub(crate) audited: u64,
    /// Comparisons of VMs that were called advisory, which promises less; and why they were.
    pub(crate) advisory: u64,
    pub(crate) reasons: BTreeSet<String>,
    /// Writes without a mark, and marks without a write, as the daemons counted them.
    pub(crate) missed: [u64; 2],
    /// What else went wrong.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    /// Pages checked.
    pub(crate) fn checks(&self) -> u64 {
        [State::Absent, State::Zero, State::Current].map(|state| self.states[state as usize]).iter().sum()
    }

    /// Counts a wrong page.
    pub(crate) fn wrong(&mut self, words: String) {
        self.mismatches += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(words);
        }
    }

    /// Adds what another has counted.
    pub(crate) fn add(&mut self, other: Self) {
        for (sum, more) in self.states.iter_mut().zip(other.states) {
            *sum += more;
        }
        self.synced += other.synced;
        self.hashed += other.hashed;
        self.comparisons += other.comparisons;
        self.mismatches += other.mismatches;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
        self.guests += other.guests;
        self.acts += other.acts;
        self.stopped += other.stopped;
        self.killed += other.killed;
        self.audited += other.audited;
        self.advisory += other.advisory;
        for reason in other.reasons {
            if self.reasons.len() < EXAMPLES {
                self.reasons.insert(reason);
            }
        }
        self.given_up += other.given_up;
        for words in other.last_words {
            if self.last_words.len() < EXAMPLES {
                self.last_words.insert(words);
            }
        }
        self.missed = [self.missed[0] + other.missed[0], self.missed[1] + other.missed[1]];
        self.failures.extend(other.failures);
    }
}

/// The outcome.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) minutes: f64,
    pub(crate) seed: u64,
    pub(crate) took: Duration,
    pub(crate) tally: Tally,
}

impl Report {
    pub(crate) fn new(arguments: &Arguments, took: Duration, tally: Tally) -> Self {
        Self { minutes: arguments.minutes, seed: arguments.seed, took, tally }
    }

    /// Whether all was well. No guest here has a reason to be called advisory, which would promise less.
    pub(crate) fn passed(&self) -> bool {
        let Tally { mismatches, failures, advisory, .. } = &self.tally;
        *mismatches == 0 && failures.is_empty() && *advisory == 0 && self.tally.checks() > 0
    }

    fn rate(&self) -> f64 {
        self.tally.checks() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let Tally { states, synced, hashed, comparisons, mismatches, .. } = &self.tally;
        let Tally { examples, guests, acts, stopped, killed, audited, missed, failures, .. } = &self.tally;
        let [stale, absent, zero, current] =
            [State::Stale, State::Absent, State::Zero, State::Current].map(|state| states[state as usize]);
        json!({
            "passed": self.passed(),
            "minutes": self.minutes,
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "page_checks": self.tally.checks(),
            "mismatches": mismatches,
            "checks_per_second": self.rate(),
            "states": {"absent": absent, "zero": zero, "current": current},
            "stale_passed_over": stale,
            "after_sync": synced,
            "hashed_anew": hashed,
            "comparisons": comparisons,
            "comparisons_of_advisory_vms": self.tally.advisory,
            "advisory_reasons": self.tally.reasons,
            "guests": guests,
            "guests_that_kvm_gave_up_on": self.tally.given_up,
            "what_their_vmms_said": self.tally.last_words,
            "acts": acts,
            "daemon": {"stopped": stopped, "killed": killed, "audited": audited, "missed_by_ebpf": missed[0], "missed_by_scan": missed[1]},
            "examples": examples,
            "failures": failures,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { states, comparisons, mismatches, guests, acts, stopped, killed, .. } = &self.tally;
        writeln!(
            f,
            "{} page checks in {:.0} s ({:.0} a second), {mismatches} mismatches",
            grouped(self.tally.checks()),
            self.took.as_secs_f64(),
            self.rate()
        )?;
        writeln!(
            f,
            "  {} current, {} zero, {} absent; {} stale pages passed over; {} of the checks after a sync",
            grouped(states[State::Current as usize]),
            grouped(states[State::Zero as usize]),
            grouped(states[State::Absent as usize]),
            grouped(states[State::Stale as usize]),
            grouped(self.tally.synced)
        )?;
        write!(
            f,
            "  {comparisons} comparisons of whole maps, {guests} guests, {acts} acts; the daemon ended {} times ({killed} by SIGKILL)",
            stopped + killed
        )?;
        write!(
            f,
            "\n  marks without a write {}, writes without a mark {}",
            self.tally.missed[1], self.tally.missed[0]
        )?;
        if self.tally.given_up > 0 {
            write!(f, "\n  KVM gave up on {} of the guests", self.tally.given_up)?;
            self.tally.last_words.iter().try_for_each(|words| write!(f, "\n    {words}"))?;
        }
        if self.tally.advisory > 0 {
            write!(f, "\n  {} of the comparisons were of VMs called advisory", self.tally.advisory)?;
            self.tally.reasons.iter().try_for_each(|reason| write!(f, "\n    {reason}"))?;
        }
        for line in self.tally.examples.iter().chain(&self.tally.failures) {
            write!(f, "\n  WRONG: {line}")?;
        }
        Ok(())
    }
}

/// A number in groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_checks_or_with_anything_wrong_has_not_passed() {
        let arguments = Arguments::parse(std::iter::empty()).unwrap();
        let report = |tally| Report::new(&arguments, Duration::from_secs(2), tally);
        assert!(!report(Tally::default()).passed());
        let mut tally = Tally { states: [5, 1, 2, 3], ..Tally::default() };
        assert!(report(tally.clone()).passed());
        assert_eq!(report(tally.clone()).json()["page_checks"], tally.checks());
        tally.wrong("page 7".to_owned());
        assert!(!report(tally.clone()).passed());
        assert!(report(tally).to_string().contains("WRONG: page 7"));
    }

    #[test]
    fn counts_add_up() {
        let mut sum = Tally::default();
        for _ in 0..2 {
            sum.add(Tally { states: [1, 2, 3, 4], guests: 1, missed: [1, 0], ..Tally::default() });
        }
        assert_eq!((sum.states, sum.guests, sum.missed), ([2, 4, 6, 8], 2, [2, 0]));
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(999), "999");
    }
}
