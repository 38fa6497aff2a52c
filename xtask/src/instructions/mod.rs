//! `cargo xtask instructions`: how many instructions the hot functions execute, held against what is written down.
//!
//! Owns building and running them under valgrind. What is counted is in `bench/hot`; what is too much is decided in [`baseline`].

mod baseline;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use self::baseline::{Baseline, Counted, Ground};
use crate::setup::{self, Scope};
use crate::workspace::{Failure, Outcome, cargo, find_program, root, run, target};

/// Count the instructions of the hot functions, and fail if any executes more than is written down.
///
/// A check without noise: each function runs with the same inputs under valgrind, and what the processor executes in it in user mode is counted, however busy the
/// machine is. bench/instructions.json has the counts that the project stands by, and the compiler, C library and valgrind that they were made with. A function fails
/// that executes over 3 % more per operation; with another compiler or library than those, 20 %, and with a processor without AVX2 nothing is compared. valgrind has no AVX-512, so what is counted of hashing is
/// its AVX2 path. What is not seen: cache misses, locks that are waited for, the kernel's work; for those there is `cargo xtask bench`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask instructions                  count and compare
  cargo xtask instructions --only map_      only functions with `map_` in their name
  cargo xtask instructions --bless          write down what was counted, after a change that is worth it
  callgrind_annotate target/instructions/map_publish_first.out
                                            where the instructions are")]
pub(crate) struct Arguments {
    /// Count only functions whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write what was counted into the baseline instead of comparing
    #[arg(long)]
    bless: bool,
    /// Where the counts are that the project stands by
    #[arg(long, value_name = "FILE", default_value = "bench/instructions.json")]
    baseline: PathBuf,
}

/// The function in the program whose instructions are counted, those of all that it calls included.
const MEASURED: &str = "memdex_hot::measured*";

/// A function as the program lists it.
struct Hot {
    name: String,
    operations: f64,
    operation: String,
}

pub(crate) fn main(arguments: &Arguments) -> Outcome {
    setup::ensure(Scope::Counting)?;
    let file = root().join(&arguments.baseline);
    let old = Baseline::read(&file)?;
    eprintln!("instructions: building with optimisation (some minutes the first time)");
    run(cargo().args(["build", "--release", "--locked", "-p", "memdex-hot", "--bin", "memdex-hot"]))?;
    let program = target().join("release/memdex-hot");
    let folder = target().join("instructions");
    fs::create_dir_all(&folder).map_err(|error| cannot("make", &folder, &error))?;

    let only = arguments.only.as_deref().unwrap_or_default();
    let mut ground = Ground::of_this_machine()?;
    let mut all = Vec::new();
    for hot in list(&program)?.into_iter().filter(|hot| hot.name.contains(only)) {
        let (vectors, total) = count(&program, &hot.name, &folder)?;
        ground.vectors = vectors;
        all.push(Counted { per_operation: total / hot.operations, name: hot.name, operation: hot.operation });
    }
    if all.is_empty() {
        return Err(Failure::new(format!("no function has {only:?} in its name")));
    }

    if arguments.bless {
        let new = old.blessed(ground, &all, arguments.only.is_some())?;
        print!("{}", old.compare(&new.ground, &all).table);
        return new.write(&file);
    }
    let comparison = old.compare(&ground, &all);
    print!("{}", comparison.table);
    if comparison.worse.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "more instructions than {} stands by: {}; make it less, or `cargo xtask instructions --bless` and say in the commit what they buy",
        arguments.baseline.display(),
        comparison.worse.join(", ")
    )))
}

/// What there is to count.
fn list(program: &Path) -> Result<Vec<Hot>, Failure> {
    let text = output(&mut Command::new(program))?;
    let line = |line: &str| {
        let mut fields = line.splitn(3, '\t');
        let (name, operations, operation) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?);
        Some(Hot { name: name.to_owned(), operations, operation: operation.to_owned() })
    };
    text.lines()
        .map(|text| line(text).ok_or_else(|| Failure::new(format!("memdex-hot says {text:?}"))))
        .collect()
}

/// Runs one function under valgrind: which vector instructions it could use, and how many instructions it executed.
fn count(program: &Path, name: &str, folder: &Path) -> Result<(String, f64), Failure> {
    let out = folder.join(format!("{name}.out"));
    let valgrind = find_program("valgrind").unwrap_or_else(|| "valgrind".into());
    let mut command = Command::new(valgrind);
    command
        .args(["--quiet", "--tool=callgrind", &format!("--toggle-collect={MEASURED}")])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(name)
        // What is in the environment lies on the stack, and moves it.
        .env_clear();
    let vectors = output(&mut command)?.trim().to_owned();
    let text = fs::read_to_string(&out).map_err(|error| cannot("read", &out, &error))?;
    match total(&text) {
        Some(total) if total > 0.0 => Ok((vectors, total)),
        _ => Err(Failure::new(format!(
            "valgrind has not seen {MEASURED} in {name}; {} has what it saw",
            out.display()
        ))),
    }
}

/// The sum that callgrind ends its file with.
fn total(text: &str) -> Option<f64> {
    text.lines().rev().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

/// What a program prints; it has to succeed.
fn output(command: &mut Command) -> Result<String, Failure> {
    let words = format!("{command:?}");
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| Failure::new(format!("{words} can't be run: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!("{words} failed ({})", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::baseline::TOLERANCE;
    use super::*;

    #[test]
    fn the_total_is_found_in_what_callgrind_writes() {
        assert_eq!(total("summary: 17\nfn=(1)\n1 2\n\ntotals: 1234\n"), Some(1234.0));
        assert_eq!(total("summary: 17\n"), None);
    }

    #[test]
    fn what_is_tolerated_is_what_help_says() {
        let help = <Arguments as clap::Args>::augment_args(clap::Command::new("instructions"));
        let help = help.get_long_about().expect("it has one").to_string();
        for share in TOLERANCE {
            assert!(help.contains(&format!("{:.0} %", share * 100.0)), "{help}");
        }
    }
}
