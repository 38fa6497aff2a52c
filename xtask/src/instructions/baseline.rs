//! The counts that the project stands by: a file, what it was made with, and what is too much beside it.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use super::{cannot, output};
use crate::workspace::{Failure, Outcome, find_program, root};

/// What a count may grow by: made with the same tools as the baseline, and with others. Counts do not differ from run to run; the
/// first is for what the compiler does otherwise because something else in the program has changed.
pub(super) const TOLERANCE: [f64; 2] = [0.03, 0.20];

/// What was counted of one function.
#[derive(Debug, Clone)]
pub(super) struct Counted {
    pub(super) name: String,
    pub(super) per_operation: f64,
    pub(super) operation: String,
}

/// What counts depend on, beside the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ground {
    pub(super) rustc: String,
    pub(super) libc: String,
    pub(super) valgrind: String,
    /// The widest vector instructions that valgrind shows to the program.
    pub(super) vectors: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    pub(super) ground: Ground,
    counts: BTreeMap<String, f64>,
}

/// What came of a comparison.
pub(super) struct Comparison {
    /// For people.
    pub(super) table: String,
    /// Functions that execute too much, and by how much.
    pub(super) worse: Vec<String>,
}

impl Ground {
    /// All but `vectors`, which only the program can say.
    pub(super) fn of_this_machine() -> Result<Self, Failure> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let valgrind = find_program("valgrind").unwrap_or_else(|| "valgrind".into());
        let version = |command: &mut Command| output(command).map(|text| text.trim().to_owned());
        Ok(Self {
            rustc: version(Command::new(rustc).arg("--version").current_dir(root()))?,
            libc: version(Command::new("getconf").arg("GNU_LIBC_VERSION"))?,
            valgrind: version(Command::new(valgrind).arg("--version"))?,
            vectors: String::new(),
        })
    }

    fn fields(&self) -> [(&'static str, &String); 4] {
        [
            ("rustc", &self.rustc),
            ("libc", &self.libc),
            ("valgrind", &self.valgrind),
            ("vectors", &self.vectors),
        ]
    }

    /// In what they differ, in words.
    fn differences(&self, now: &Self) -> Vec<String> {
        let pairs = self.fields().into_iter().zip(now.fields());
        pairs
            .filter(|((_, old), (_, new))| old != new)
            .map(|((name, old), (_, new))| format!("{name} is {new}, was {old}"))
            .collect()
    }
}

impl Baseline {
    /// Reads the file; an empty baseline if there is none.
    pub(super) fn read(file: &Path) -> Result<Self, Failure> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(cannot("read", file, &error)),
        };
        Self::parse(&text).ok_or_else(|| {
            Failure::new(format!(
                "{} has no counts of instructions; `--bless` makes it anew once it is removed",
                file.display()
            ))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let word = |name: &str| Some(value.get("made_with")?.get(name)?.as_str()?.to_owned());
        let ground = Ground {
            rustc: word("rustc")?,
            libc: word("libc")?,
            valgrind: word("valgrind")?,
            vectors: word("vectors")?,
        };
        let counts = value.get("instructions_per_operation")?.as_object()?;
        let counts = counts.iter().map(|(name, count)| Some((name.clone(), count.as_f64()?)));
        Some(Self { ground, counts: counts.collect::<Option<_>>()? })
    }

    pub(super) fn write(&self, file: &Path) -> Outcome {
        let round = |count: &f64| json!((count * 100.0).round() / 100.0);
        let counts: Map<String, Value> =
            self.counts.iter().map(|(name, count)| (name.clone(), round(count))).collect();
        let ground: Map<String, Value> =
            self.ground.fields().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        let value = json!({ "made_with": ground, "instructions_per_operation": counts });
        let text = serde_json::to_string_pretty(&value).map_err(|error| Failure::new(error.to_string()))?;
        fs::write(file, text + "\n").map_err(|error| cannot("write", file, &error))?;
        eprintln!("instructions: {} is written", file.display());
        Ok(())
    }

    /// What there is after these counts have been accepted. `some`: not all functions were counted.
    pub(super) fn blessed(&self, ground: Ground, counted: &[Counted], some: bool) -> Result<Self, Failure> {
        let mut counts = BTreeMap::new();
        if some {
            let differences = self.ground.differences(&ground);
            if !self.counts.is_empty() && !differences.is_empty() {
                let differences = differences.join("; ");
                return Err(Failure::new(format!(
                    "not only some functions can be blessed: {differences}; leave out --only"
                )));
            }
            counts.clone_from(&self.counts);
        }
        counts.extend(counted.iter().map(|counted| (counted.name.clone(), counted.per_operation)));
        Ok(Self { ground, counts })
    }

    /// Holds what was counted against the baseline.
    pub(super) fn compare(&self, ground: &Ground, all: &[Counted]) -> Comparison {
        let differences = if self.counts.is_empty() { Vec::new() } else { self.ground.differences(ground) };
        let comparable = self.ground.vectors == ground.vectors;
        let most = TOLERANCE[usize::from(!differences.is_empty())];
        let mut table = "| function | instructions | written down | now / then | | one operation |\n|---|--:|--:|--:|---|---|\n".to_owned();
        let mut worse = Vec::new();
        for Counted { name, per_operation: now, operation } in all {
            let then = self.counts.get(name).filter(|then| **then > 0.0);
            let (then, ratio, word) = match then {
                None => ("–".to_owned(), "–".to_owned(), "new"),
                Some(then) => {
                    let ratio = now / then;
                    let word = if !comparable {
                        ""
                    } else if ratio > 1.0 + most {
                        worse.push(format!("{name} by {:.1} %", (ratio - 1.0) * 100.0));
                        "MORE"
                    } else if ratio < 1.0 - most {
                        "less"
                    } else {
                        ""
                    };
                    (format!("{then:.2}"), format!("{ratio:.3}"), word)
                }
            };
            let _ = writeln!(table, "| `{name}` | {now:.2} | {then} | {ratio} | {word} | {operation} |");
        }
        let _ = writeln!(table, "\nIn user mode, {} as in valgrind, {}.", ground.vectors, ground.rustc);
        if !differences.is_empty() {
            let verdict = if comparable {
                format!("{:.0} % more are let pass", most * 100.0)
            } else {
                "nothing is compared".to_owned()
            };
            let _ = writeln!(
                table,
                "Not made with what the baseline was made with ({}): {verdict}.",
                differences.join("; ")
            );
        }
        Comparison { table, worse }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(rustc: &str, vectors: &str) -> Ground {
        let [libc, valgrind] = ["glibc 2.36", "valgrind-3.19.0"].map(str::to_owned);
        Ground { rustc: rustc.to_owned(), libc, valgrind, vectors: vectors.to_owned() }
    }

    fn counted(counts: &[(&str, f64)]) -> Vec<Counted> {
        let one = |(name, per_operation): &(&str, f64)| Counted {
            name: (*name).to_owned(),
            per_operation: *per_operation,
            operation: "page".to_owned(),
        };
        counts.iter().map(one).collect()
    }

    fn baseline() -> Baseline {
        let counts = counted(&[("hash", 1000.0), ("map", 100.0)]);
        Baseline::default().blessed(ground("rustc 1", "AVX2"), &counts, false).expect("all were counted")
    }

    #[test]
    fn what_grew_beyond_the_tolerance_is_named_and_what_shrank_is_not() {
        let now = counted(&[("hash", 1029.0), ("map", 104.0), ("new", 1.0)]);
        let comparison = baseline().compare(&ground("rustc 1", "AVX2"), &now);
        assert_eq!(comparison.worse, ["map by 4.0 %"]);
        assert!(comparison.table.contains("| `new` | 1.00 | – | – | new |"), "{}", comparison.table);
        let less = counted(&[("hash", 500.0), ("map", 100.0)]);
        let comparison = baseline().compare(&ground("rustc 1", "AVX2"), &less);
        assert!(comparison.worse.is_empty() && comparison.table.contains("| less |"), "{}", comparison.table);
    }

    #[test]
    fn another_compiler_is_said_and_given_more_room() {
        let comparison =
            baseline().compare(&ground("rustc 2", "AVX2"), &counted(&[("hash", 1190.0), ("map", 125.0)]));
        assert_eq!(comparison.worse, ["map by 25.0 %"]);
        assert!(comparison.table.contains("rustc is rustc 2, was rustc 1"), "{}", comparison.table);
    }

    #[test]
    fn other_vector_instructions_are_not_compared() {
        let comparison = baseline().compare(&ground("rustc 1", "SSE"), &counted(&[("hash", 9000.0)]));
        assert!(comparison.worse.is_empty());
        assert!(comparison.table.contains("nothing is compared"), "{}", comparison.table);
    }

    #[test]
    fn some_functions_can_be_blessed_alone_only_with_the_same_tools() {
        let some = counted(&[("map", 90.0)]);
        let blessed = baseline().blessed(ground("rustc 1", "AVX2"), &some, true).expect("the same tools");
        assert_eq!(blessed.counts.get("hash"), Some(&1000.0));
        assert_eq!(blessed.counts.get("map"), Some(&90.0));
        assert!(baseline().blessed(ground("rustc 2", "AVX2"), &some, true).is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("instructions.json");
        assert!(Baseline::read(&file).expect("no file is no error").counts.is_empty());
        baseline().write(&file).expect("it can be written");
        let read = Baseline::read(&file).expect("it can be read");
        assert_eq!((read.counts, read.ground), (baseline().counts, baseline().ground));
        fs::write(&file, "{}").expect("it can be written");
        assert!(Baseline::read(&file).is_err());
    }
}
