//! Waiting with a bound: no test waits for ever, and a time-out says what was waited for.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(5);

/// Asks until there is an answer; returns it and how long it took.
///
/// # Panics
/// If there is none within `bound`.
pub fn until<T>(what: &str, bound: Duration, mut ask: impl FnMut() -> Option<T>) -> (T, Duration) {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return (answer, begun.elapsed());
        }
        assert!(begun.elapsed() < bound, "waited {bound:?} in vain for: {what}");
        std::thread::sleep(STEP);
    }
}
