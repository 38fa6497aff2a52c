//! What came out: figures and checks, for the last words and for `--json`.

use std::{fs, io, path::Path, time::Instant};

use serde_json::{Value, json};

use crate::{
    arguments::Arguments,
    figures,
    stage::{Ink, Stage},
};

/// Figures and checks of one run.
#[derive(Debug)]
pub(crate) struct Summary {
    begun: Instant,
    guests: &'static str,
    figures: Vec<Value>,
    checks: Vec<(String, bool, String)>,
    complete: bool,
}

impl Summary {
    /// Of a run that begins now.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let guests = if arguments.fast { "tiny" } else { "debian" };
        Self { begun: Instant::now(), guests, figures: Vec::new(), checks: Vec::new(), complete: false }
    }

    /// Notes a figure. `of` is a VM or a host.
    pub(crate) fn figure(&mut self, of: &str, name: &str, value: impl Into<Value>, unit: &str) {
        self.figures.push(json!({"of": of, "name": name, "value": value.into(), "unit": unit}));
    }

    /// Notes a check, and shows it.
    pub(crate) fn check(&mut self, stage: &mut Stage, name: &str, passed: bool, words: &str) {
        stage.verdict(passed, words);
        self.checks.push((name.to_owned(), passed, words.to_owned()));
    }

    /// The last scene is over.
    pub(crate) const fn complete(&mut self) {
        self.complete = true;
    }

    fn passed(&self) -> bool {
        self.complete && self.checks.iter().all(|(_, passed, _)| *passed)
    }

    /// The last words, and the exit code.
    pub(crate) fn applause(&self, stage: &mut Stage) -> u8 {
        let time = figures::time(self.begun.elapsed());
        let failed: Vec<_> = self.checks.iter().filter(|(_, passed, _)| !passed).collect();
        if self.passed() {
            let text = stage.paint(Ink::Good, &format!("All {} checks passed.", self.checks.len()));
            stage.say(&format!("{text} {time} in all. To look for yourself: memdexd --help, memdex --help."));
            return 0;
        }
        stage.bad(&format!("{} of {} checks failed, after {time}:", failed.len(), self.checks.len()));
        for (_, _, words) in failed {
            stage.verdict(false, words);
        }
        1
    }

    /// Writes it all as JSON.
    pub(crate) fn write(&self, file: &Path) -> io::Result<()> {
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|(name, passed, words)| json!({"name": name, "passed": passed, "words": words}))
            .collect();
        let document = json!({
            "passed": self.passed(),
            "complete": self.complete,
            "guests": self.guests,
            "seconds": self.begun.elapsed().as_secs_f64(),
            "checks": checks,
            "figures": self.figures,
        });
        fs::write(file, format!("{document:#}\n"))
    }
}
