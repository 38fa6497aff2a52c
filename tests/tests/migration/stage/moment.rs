//! When something goes wrong: after any while, or as soon as a daemon says that a phase has begun. Owns chance and its seed.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The phases of a migration, as they are called in the log, in order.
pub const PHASES: [&str; 9] = [
    "checking",
    "connecting",
    "copying",
    "stopping",
    "syncing",
    "finishing",
    "comparing",
    "device_state",
    "handing_over",
];
/// What is logged when the guest runs at the destination.
const ENDED: &str = "the guest runs at the destination";
/// Longest wait for a phase: it may have been before anybody looked.
const BOUND: Duration = Duration::from_secs(20);

/// How often each fault is tried, with `MEMDEX_FAULT_RUNS`; few by default, for every day.
pub fn runs(few: usize) -> usize {
    std::env::var("MEMDEX_FAULT_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(few)
}

/// Chance; the seed is printed and can be given as `MEMDEX_FAULT_SEED`.
pub struct Chance(u64);

impl Chance {
    pub fn new() -> Self {
        let given = std::env::var("MEMDEX_FAULT_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos().into()
        });
        eprintln!("MEMDEX_FAULT_SEED={seed}");
        Self(seed)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound.max(1)
    }

    /// At most `longest`.
    pub fn duration(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.below(longest.as_micros() as u64 + 1))
    }

    /// A moment of a migration that takes about `whole`: any, or in two of three cases as soon as a phase begins, and a little later.
    pub fn any_moment(&mut self, whole: Duration) -> Moment {
        if self.below(3) == 0 {
            return Moment { phase: None, after: self.duration(whole) };
        }
        // Most of these are short, and there is more to go wrong in them.
        let phase = *PHASES.get(self.below(PHASES.len() as u64 + 1) as usize).unwrap_or(&ENDED);
        Moment { phase: Some(phase), after: self.duration(Duration::from_millis(4)) }
    }
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub phase: Option<&'static str>,
    pub after: Duration,
}

impl Moment {
    /// As soon as a phase begins.
    pub fn at(phase: &'static str) -> Self {
        Self { phase: Some(phase), after: Duration::ZERO }
    }

    /// Waits for it. `log` was made before the migration began. False if the phase was not seen: then the fault would be none. (One that is a
    /// while may also be just after the end.)
    #[must_use]
    pub fn wait(&self, log: &mut Tail) -> bool {
        let seen = self.phase.is_none_or(|phase| {
            log.wait_for(&if phase == ENDED { phase.to_owned() } else { format!("phase=\"{phase}\"") })
        });
        // The fault comes at a moment of chance, and nothing is waited for by this.
        let begun = Instant::now();
        while begun.elapsed() < self.after {
            std::thread::sleep(Duration::from_micros(20).min(self.after));
        }
        seen
    }
}

/// What a daemon logs from now on.
pub struct Tail {
    file: PathBuf,
    from: u64,
    text: String,
}

impl Tail {
    pub fn of(log: &Path) -> Self {
        let from = std::fs::metadata(log).map_or(0, |found| found.len());
        Self { file: log.to_owned(), from, text: String::new() }
    }

    /// All of it up to now.
    pub fn text(&mut self) -> &str {
        if let Ok(mut file) = File::open(&self.file) {
            let mut bytes = Vec::new();
            if file.seek(SeekFrom::Start(self.from)).is_ok() && file.read_to_end(&mut bytes).is_ok() {
                self.from += bytes.len() as u64;
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        &self.text
    }

    /// False if the migration ends before.
    fn wait_for(&mut self, words: &str) -> bool {
        let begun = Instant::now();
        loop {
            let text = self.text();
            if text.contains(words) {
                return true;
            }
            if begun.elapsed() > BOUND || ["failed: ", "aborted: "].iter().any(|end| text.contains(end)) {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
