//! The workspace's own test programs on this kernel: which of their tests run here, and what they say.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread::JoinHandle,
};

use crate::{abilities::Abilities, reporter::Reporter};

/// A test may print such a line for the table: `kernel-fact: NAME = VALUE`.
const FACT: &str = "kernel-fact: ";

/// A test program, and which of its tests run: the arguments are those of Rust's test harness.
struct Program {
    name: &'static str,
    /// `None`: the program makes no sense there.
    arguments: Option<&'static [&'static str]>,
    /// The same on a kernel that can't track page by page.
    without_scan: Option<&'static [&'static str]>,
    /// It takes a minute and more, most of it on one processor: it runs beside all others, on the other one.
    beside: bool,
}

/// There is no QEMU in here, so what needs one is left out; so is what repeats a thing hundreds of times or measures time.
static PROGRAMS: [Program; 7] = [
    Program {
        name: "ebpf",
        arguments: Some(&[]),
        without_scan: Some(&["--skip", "the_marks_and_the_page_table"]),
        beside: false,
    },
    Program {
        name: "ebpf",
        arguments: None,
        without_scan: Some(&["--ignored", "soft_dirty"]),
        beside: false,
    },
    Program { name: "memory", arguments: Some(&[]), without_scan: Some(&[]), beside: false },
    Program {
        name: "witness",
        arguments: Some(&[
            "tracking::",
            "changes::",
            "a_seccomp_filter",
            "a_traced_process",
            "no_signal_is_lost",
            "of_an_unprivileged_process",
        ]),
        without_scan: None,
        beside: false,
    },
    Program {
        name: "tiny_guest_soundness",
        arguments: Some(&["anonymous_ram_with_dirty_ring", "slots_may_change"]),
        without_scan: Some(&["slots_may_change"]),
        beside: false,
    },
    // What differs between kernels: each guest, daemon and sync takes its time in here.
    Program {
        name: "conformance",
        arguments: Some(&["--exact", "write_protection"]),
        without_scan: Some(&["--include-ignored", "soft_dirty_bits"]),
        beside: true,
    },
    Program {
        name: "conformance",
        arguments: Some(&["--exact", "no_write_protection"]),
        without_scan: Some(&["--exact", "no_write_protection"]),
        beside: false,
    },
];

/// Those that run beside the others, with their names.
pub(crate) struct Beside(Vec<(&'static str, JoinHandle<Result<Outcome, String>>)>);

impl Beside {
    pub(crate) fn start(abilities: &Abilities, folder: &Path) -> Self {
        let start = |(program, arguments): (&Program, _)| {
            let file = folder.join(program.name);
            (program.name, std::thread::spawn(move || Outcome::of(&file, arguments)))
        };
        Self(wanted(abilities).filter(|(program, _)| program.beside).map(start).collect())
    }
}

fn wanted(
    abilities: &Abilities,
) -> impl Iterator<Item = (&'static Program, &'static [&'static str])> + use<> {
    let page_by_page = abilities.page_by_page();
    PROGRAMS.iter().filter_map(move |program| {
        let arguments = if page_by_page { program.arguments } else { program.without_scan };
        arguments.map(|arguments| (program, arguments))
    })
}

pub(crate) fn check(reporter: &mut Reporter, abilities: &Abilities, folder: &Path, beside: Beside) {
    let (mut passed, mut all) = (0, 0);
    let mut judge = |name: &str, how: &str, run: &mut dyn FnMut() -> Result<Outcome, String>| {
        let mut outcome = Outcome::default();
        reporter.check(&format!("tests of {name}"), || {
            outcome = run()?;
            outcome.judge().map(|detail| detail + how)
        });
        passed += outcome.passed;
        all += outcome.passed + outcome.failed.len();
        for (name, value) in outcome.facts {
            reporter.fact(&name, value);
        }
    };
    for (program, arguments) in wanted(abilities).filter(|(program, _)| !program.beside) {
        judge(program.name, "", &mut || Outcome::of(&folder.join(program.name), arguments));
    }
    for (name, thread) in beside.0 {
        let mut outcome = Some(thread.join().unwrap_or_else(|_| Err("it could not be run".to_owned())));
        judge(name, ", beside the others", &mut || outcome.take().expect("it is asked once"));
    }
    reporter.fact("tests passed", format!("{passed} of {all}"));
}

/// What a test program said.
#[derive(Default)]
pub(crate) struct Outcome {
    passed: usize,
    failed: Vec<String>,
    facts: Vec<(String, String)>,
    success: bool,
}

impl Outcome {
    /// Runs a program; what it prints goes on to the console.
    fn of(program: &Path, arguments: &[&str]) -> Result<Self, String> {
        let mut command = Command::new(program);
        // One at a time: the processors are slow, and tests that wait for each other's time would fail for no reason.
        command.args(["--test-threads", "1", "--show-output"]).args(arguments);
        let failed = |error: std::io::Error| format!("{}: {error}", program.display());
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
        let mut outcome = Self::default();
        if let Some(output) = child.stdout.take() {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                eprintln!("{line}");
                outcome.read(&line);
            }
        }
        outcome.success = child.wait().map_err(failed)?.success();
        Ok(outcome)
    }

    fn read(&mut self, line: &str) {
        if let Some((name, value)) = line.strip_prefix(FACT).and_then(|fact| fact.split_once(" = ")) {
            self.facts.push((name.to_owned(), value.to_owned()));
        } else if let Some(summary) = line.strip_prefix("test result: ") {
            let (before, _) = summary.split_once(" passed;").unwrap_or_default();
            self.passed = before.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|test| test.strip_suffix(" ... FAILED"))
        {
            self.failed.push(name.to_owned());
        }
    }

    fn judge(&self) -> Result<String, String> {
        match (self.success, self.passed, self.failed.as_slice()) {
            (true, 1.., []) => Ok(format!("{} passed", self.passed)),
            (_, _, []) => Err(format!("{} passed, and the program ended badly", self.passed)),
            (_, _, failed) => Err(format!("{} passed, failed: {}", self.passed, failed.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_that_ran_tests_and_ended_well_passes() {
        let outcome = |text: &str, success| {
            let mut outcome = Outcome { success, ..Outcome::default() };
            text.lines().for_each(|line| outcome.read(line));
            outcome
        };
        let summary = "test result: ok. 21 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        let good = outcome(&format!("test a::b ... ok\nkernel-fact: marks = 8 of 8\n{summary}"), true);
        assert_eq!(good.judge(), Ok("21 passed".to_owned()));
        assert_eq!(good.facts, [("marks".to_owned(), "8 of 8".to_owned())]);
        assert!(outcome(summary, false).judge().is_err());
        assert!(outcome("test result: ok. 0 passed; 0 failed;", true).judge().is_err());
        let bad = outcome("test b ... FAILED\ntest result: FAILED. 1 passed; 1 failed;", false);
        assert_eq!(bad.judge(), Err("1 passed, failed: b".to_owned()));
    }
}
