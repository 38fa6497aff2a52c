//! What a guest says of its own memory: the lines that `memdex-check` in the guest prints once a second.
//!
//! A guest that moves leaves the rest of a line it was printing to the destination; such halves are passed over.

use std::time::Duration;

use super::Qemu;
use crate::wait;

/// Begins each line.
const LINE: &str = "MEMDEX-CHECK ";
/// The first bytes of a page that `memdex-check` has filled with chance.
pub const CHECK_PAGE: &[u8; 8] = b"MEMDEXck";
/// How long a guest that lives may take for a line: it prints one each second, and may share its core with much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a guest has found to be right so far. The counters only grow, also across a migration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// Pages compared with what they should be.
    pub pages: u64,
    /// Pages written.
    pub writes: u64,
    /// How often all pages were compared, one after the other.
    pub sweeps: u64,
}

impl Checks {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.strip_prefix("ok ")?.split(' ').map(str::parse);
        let mut next = || fields.next()?.ok();
        let checks = Self { pages: next()?, writes: next()?, sweeps: next()? };
        fields.next().is_none().then_some(checks)
    }

    fn is_behind(&self, other: &Self) -> bool {
        self.pages < other.pages || self.writes < other.writes || self.sweeps < other.sweeps
    }
}

impl Qemu {
    /// What the guest said last; nothing before its first check.
    #[must_use]
    pub fn checks(&self) -> Option<Checks> {
        all(&self.serial()).pop()
    }

    /// What the guest found to be wrong, in its own words.
    #[must_use]
    pub fn bad_check(&self) -> Option<String> {
        bad(&self.serial())
    }

    /// Waits until the guest says anew that its memory is as it should be, and returns what it says. `after` is what it
    /// was known to have done before (at the source, say); [`Checks::default`] if nothing is known.
    ///
    /// # Panics
    /// If it has found anything wrong, is behind `after`, or says nothing for a minute.
    pub fn check_ok(&mut self, after: Checks) -> Checks {
        let before = all(&self.serial()).len();
        self.wait_for_checks(after, |checks| checks.len() > before)
    }

    /// The same, once it has compared every page since this was called.
    ///
    /// # Panics
    /// As [`Self::check_ok`].
    pub fn check_all(&mut self, after: Checks) -> Checks {
        let first = self.check_ok(after).sweeps;
        // One sweep was half done when it said so.
        self.wait_for_checks(after, |checks| checks.last().is_some_and(|last| last.sweeps >= first + 2))
    }

    fn wait_for_checks(&mut self, after: Checks, enough: impl Fn(&[Checks]) -> bool) -> Checks {
        let (checks, _) = wait::until("the guest's own check of its memory", PATIENCE, || {
            assert!(self.is_running(), "QEMU ended");
            let serial = self.serial();
            if let Some(bad) = bad(&serial) {
                panic!("the guest's memory is wrong: {bad}");
            }
            let checks = all(&serial);
            enough(&checks).then(|| checks.last().copied())?
        });
        assert!(!checks.is_behind(&after), "the guest has gone back in time: {checks:?} after {after:?}");
        checks
    }
}

/// The complete lines, without what each begins with.
fn lines(serial: &str) -> impl Iterator<Item = &str> {
    let complete = serial.rfind('\n').map_or("", |end| &serial[..end]);
    // Not by the beginning of the line: the first one at a destination may follow the rest of another.
    complete.lines().filter_map(|line| Some(line.split_once(LINE)?.1.trim_end()))
}

fn all(serial: &str) -> Vec<Checks> {
    lines(serial).filter_map(Checks::parse).collect()
}

fn bad(serial: &str) -> Option<String> {
    lines(serial).find(|line| line.starts_with("BAD")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_lines_are_passed_over() {
        let serial =
            "boot\r\nK ok 9 9 9\r\nMEMDEX-CHECK ok 1 2 3\r\nMEMDEX-CHECK ok 5\r\nMEMDEX-CHECK ok 5 6 7";
        assert_eq!(all(serial), [Checks { pages: 1, writes: 2, sweeps: 3 }]);
        assert_eq!(bad(serial), None);
        assert_eq!(bad("MEMDEX-CHECK BAD page 3 …\r\n").as_deref(), Some("BAD page 3 …"));
    }
}
