//! Waiting with a bound: no test waits for ever, and a time-out says what was waited for.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(5);

/// Every bound is multiplied by this: 1, or `$MEMDEX_PATIENCE` where a host is known to be slow (an emulated processor).
#[must_use]
pub fn patience() -> u32 {
    std::env::var("MEMDEX_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Lets memdex do its work for this long, or longer where the host is slow.
pub fn pause(duration: Duration) {
    std::thread::sleep(duration * patience());
}

/// Asks until there is an answer; returns it and how long it took.
///
/// # Panics
/// If there is none within `bound`.
pub fn until<T>(what: &str, bound: Duration, mut ask: impl FnMut() -> Option<T>) -> (T, Duration) {
    let begun = Instant::now();
    let bound = bound * patience();
    loop {
        if let Some(answer) = ask() {
            return (answer, begun.elapsed());
        }
        assert!(begun.elapsed() < bound, "waited {bound:?} in vain for: {what}");
        std::thread::sleep(STEP);
    }
}

/// Asks until the answer is right; what was wrong with the last one is in the message if none is.
///
/// # Panics
/// If there is none within `bound`.
pub fn until_right<T>(what: &str, bound: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    let bound = bound * patience();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(wrong) => assert!(begun.elapsed() < bound, "waited {bound:?} in vain for: {what}; {wrong}"),
        }
        std::thread::sleep(STEP);
    }
}
