//! memdex on other kernels than this machine's: each is booted in QEMU with an emulated processor that virtualizes, so
//! that KVM in there translates guest addresses with two-stage page tables, as on hardware.
//!
//! Owns the order of things on this machine: packing, booting, reading the report, the verdict. What is checked in there
//! is the program `kernel-check`'s (`src/bin/kernel-check`); the images are [`crate::image`]'s.
//!
//! A kernel passes if its report came to its end, every check passed, and there was at least one. Silence, a panic of the
//! kernel or the time limit is a failure. QEMU never outlives the run: it dies with the thread that started it.

mod boot;
mod finding;
pub mod report;
mod table;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

pub use finding::Finding;
pub use table::table;

use crate::image::{self, HostKernelSource, HostProgram, ImageError};

/// Programs that are tried in there, beside the tests.
pub const PROGRAMS: [&str; 4] = ["memdexd", "memdex", "tiny-vmm", "kernel-check"];
/// Test programs of the workspace that make sense in there; `kernel-check` says which of their tests run on which kernel.
pub const TESTS: [&str; 5] = ["ebpf", "memory", "witness", "tiny_guest_soundness", "conformance"];
/// Lines of a console that are shown when its kernel fails.
const CONSOLE_TAIL: usize = 60;

/// What to try, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kernels, by turns.
    pub kernels: Vec<HostKernelSource>,
    /// Where [`PROGRAMS`] are.
    pub programs: PathBuf,
    /// [`TESTS`], by name.
    pub tests: Vec<(String, PathBuf)>,
    /// A folder for the initramfs and the consoles.
    pub folder: PathBuf,
    /// Time for each kernel.
    pub limit: Duration,
    /// Leave KVM out, to see that the checks can fail.
    pub without_kvm: bool,
}

/// Tries every kernel, and says on standard error how it goes.
///
/// # Errors
/// What can't be fetched, packed or started. A kernel on which a check fails is no error but a [`Finding`].
pub fn run(plan: &Plan) -> Result<Vec<Finding>, ImageError> {
    let programs = PROGRAMS
        .map(|name| HostProgram { file: plan.programs.join(name), place: format!("programs/{name}") });
    let tests = plan
        .tests
        .iter()
        .map(|(name, file)| HostProgram { file: file.clone(), place: format!("tests/{name}") });
    eprintln!("vm-test: packing the programs");
    let programs: Vec<_> = programs.into_iter().chain(tests).collect();
    let packed = image::pack(&programs, &plan.folder)?;
    plan.kernels.iter().map(|source| attempt(plan, source, &packed)).collect()
}

fn attempt(
    plan: &Plan,
    source: &HostKernelSource,
    packed: &[(String, Vec<u8>)],
) -> Result<Finding, ImageError> {
    let name = source.name;
    let kernel = source.fetch()?;
    let initrd = plan.folder.join(format!("{name}.initrd"));
    image::write_initramfs(&kernel, packed, &initrd)?;
    let console = plan.folder.join(format!("{name}.console"));
    eprintln!("vm-test: {name}: booting Linux {} (console: {})", kernel.version, console.display());

    let begun = Instant::now();
    let mut finding = Finding::of(name);
    let host = boot::Host {
        kernel: &kernel,
        initrd: &initrd,
        console: &console,
        limit: plan.limit,
        without_kvm: plan.without_kvm,
    };
    let ended = host.run(|line| {
        if let Some(text) = line.in_words() {
            eprintln!("vm-test: {name}: {text}");
        }
        finding.take(line);
    })?;
    finding.end(ended, begun.elapsed());
    fs::remove_file(&initrd).map_err(|source| ImageError::Io { action: "removing", path: initrd, source })?;

    if finding.passed() {
        eprintln!("vm-test: {name}: passed in {:.0} s", finding.took().as_secs_f64());
    } else {
        eprintln!("vm-test: {name}: FAILED: {}", finding.troubles().join("; "));
        eprintln!("vm-test: {name}: the end of its console:");
        let text = fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(CONSOLE_TAIL)..] {
            eprintln!("    {}", line.trim_end());
        }
    }
    Ok(finding)
}
