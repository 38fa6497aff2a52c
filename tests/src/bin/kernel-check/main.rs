//! `kernel-check`: runs in a host under test (see `memdex_tests::kernel_matrix`) and reports what its kernel gives memdex,
//! and whether memdex keeps its promises there.
//!
//! Owns which checks there are and what each kernel is held to. What a kernel can do is asked of the kernel itself, in
//! [`abilities`], and memdex has to come to the same conclusion: exact tracking where it is possible, and where it is
//! not, words that say so.

mod abilities;
mod bits;
mod cost;
mod daemon;
mod programs;
mod reporter;

use std::{path::PathBuf, process::ExitCode};

use abilities::Abilities;
use reporter::Reporter;

const USAGE: &str = "usage: kernel-check --report PORT --tests FOLDER

Runs as root in the host that `cargo xtask vm-test` boots; elsewhere it would find this machine's own kernel.";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut report, mut tests) = (None, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--report" => report = arguments.next().map(PathBuf::from),
            "--tests" => tests = arguments.next().map(PathBuf::from),
            _ => {}
        }
    }
    let (Some(report), Some(tests)) = (report, tests) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut reporter = match Reporter::open(&report) {
        Ok(reporter) => reporter,
        Err(error) => {
            eprintln!("kernel-check: {} can't be opened: {error}", report.display());
            return ExitCode::FAILURE;
        }
    };
    let abilities = Abilities::of_this_kernel();
    abilities.report(&mut reporter);
    reporter.check("KVM translates guest addresses with two-stage page tables", abilities::two_stage_kvm);
    daemon::check(&mut reporter, &abilities);
    cost::check(&mut reporter, &abilities);
    // Not before the costs are known: it takes a processor.
    let beside = programs::Beside::start(&abilities, &tests);
    if abilities.whole() {
        bits::check(&mut reporter);
    }
    programs::check(&mut reporter, &abilities, &tests, beside);
    reporter.end();
    ExitCode::SUCCESS
}
