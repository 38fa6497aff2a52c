//! What was found of one kernel. Owns the verdict.

use std::time::Duration;

use super::{boot::Ended, report::Line};

/// What was found of one kernel.
#[derive(Clone, Debug)]
pub struct Finding {
    name: String,
    facts: Vec<(String, String)>,
    passed: usize,
    failed: Vec<String>,
    running: Option<String>,
    complete: bool,
    trouble: Option<String>,
    took: Duration,
}

impl Finding {
    pub(super) fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            facts: Vec::new(),
            passed: 0,
            failed: Vec::new(),
            running: None,
            complete: false,
            trouble: None,
            took: Duration::ZERO,
        }
    }

    pub(super) fn take(&mut self, line: Line) {
        match line {
            Line::Fact { name, value } => self.facts.push((name, value)),
            Line::Begin { check } => self.running = Some(check),
            Line::Check { check, passed, .. } => {
                self.running = None;
                if passed {
                    self.passed += 1;
                } else {
                    self.failed.push(check);
                }
            }
            Line::End => self.complete = true,
        }
    }

    pub(super) fn end(&mut self, ended: Ended, took: Duration) {
        self.took = took;
        self.trouble = match ended {
            Ended::TimeLimit => Some("it did not end within its time limit".to_owned()),
            Ended::Off if !self.complete => Some("it went off before its report was complete".to_owned()),
            Ended::Off => None,
        };
    }

    /// What the kernel is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has, in the order it was found.
    #[must_use]
    pub fn facts(&self) -> &[(String, String)] {
        &self.facts
    }

    /// Whether everything is as it must be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.complete && self.trouble.is_none() && self.failed.is_empty() && self.passed > 0
    }

    /// Checks that passed, and all that ran.
    #[must_use]
    pub fn checks(&self) -> (usize, usize) {
        (self.passed, self.passed + self.failed.len())
    }

    /// How long it took, from its start to its end.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let failed = self.failed.iter().map(|check| format!("check failed: {check}"));
        let running = self.running.iter().map(|check| format!("check did not end: {check}"));
        let nothing = (self.passed == 0 && self.failed.is_empty()).then(|| "nothing was checked".to_owned());
        failed.chain(running).chain(self.trouble.clone()).chain(nothing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(lines: &[Line], ended: Ended) -> Finding {
        let mut finding = Finding::of("6.1");
        lines.iter().cloned().for_each(|line| finding.take(line));
        finding.end(ended, Duration::from_secs(1));
        finding
    }

    fn check(passed: bool) -> Line {
        Line::Check { check: "a".into(), passed, detail: String::new(), seconds: 1.0 }
    }

    #[test]
    fn only_a_complete_report_of_passed_checks_passes() {
        assert!(finding(&[check(true), Line::End], Ended::Off).passed());
        for (lines, ended) in [
            (&[][..], Ended::Off),
            (&[Line::End], Ended::Off),
            (&[check(true)], Ended::Off),
            (&[check(true), check(false), Line::End], Ended::Off),
            (&[check(true), Line::End], Ended::TimeLimit),
            (&[check(true), Line::Begin { check: "b".into() }], Ended::Off),
        ] {
            let finding = finding(lines, ended);
            assert!(!finding.passed() && !finding.troubles().is_empty(), "{lines:?}");
        }
    }
}
