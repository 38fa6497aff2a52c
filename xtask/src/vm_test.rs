//! `cargo xtask vm-test`: memdex on other kernels than this machine's, booted in QEMU.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use memdex_tests::image::{HOST_KERNELS, HostKernelSource};
use memdex_tests::kernel_matrix::{self, Plan, TESTS};

use crate::setup::{self, Scope};
use crate::workspace::{Failure, Outcome, cargo, target};

/// Try memdex on Debian's kernels, each booted in QEMU with KVM in it.
///
/// The processor is emulated, with virtualization and two-stage page tables, so that the faults of the guests in there are
/// those of hardware; no /dev/kvm is needed. On each kernel: what memdexd attaches to, whether its map is right while
/// a guest writes, the tests of the eBPF programs and of the witnesses, and a comparison of marks with the page
/// table, page by page. The table at the end says what each kernel gives. The exit code is 0 only if every check
/// passed on every kernel.
#[derive(clap::Args)]
#[command(after_help = "\
Kernels:
  6.1      Debian 12 (bookworm): no PAGEMAP_SCAN, so writes are tracked by soft-dirty bits there
  6.12     Debian 13 (trixie)
  newest   whatever Debian unstable (sid) had when it was fetched; to fetch it again, remove target/guests/host-kernel-newest-*

Kernels are downloaded once, into target/guests. The consoles stay in target/vm-test.

Examples:
  cargo xtask vm-test                        every kernel
  cargo xtask vm-test 6.1 6.12               these two
  cargo xtask vm-test 6.12 --without-kvm     must fail: shows that the checks can")]
pub(crate) struct Arguments {
    /// Which kernels; all of them if none is named
    #[arg(value_name = "KERNEL", value_parser = PossibleValuesParser::new(HOST_KERNELS.map(|kernel| kernel.name)))]
    kernels: Vec<String>,
    /// Time for each kernel, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    /// Don't load KVM in there
    #[arg(long)]
    without_kvm: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Outcome {
    setup::ensure(Scope::Guests)?;
    eprintln!("vm-test: building (some minutes the first time)");
    let tests = tests_in(&build()?);
    if let Some(missing) = TESTS.iter().find(|name| !tests.iter().any(|(built, _)| built == *name)) {
        return Err(Failure::new(format!("cargo built no test program called {missing}")));
    }
    let plan = Plan {
        kernels: chosen(&arguments.kernels),
        programs: target().join("debug"),
        tests,
        folder: target().join("vm-test"),
        limit: Duration::from_secs(arguments.limit),
        without_kvm: arguments.without_kvm,
    };
    let findings = kernel_matrix::run(&plan).map_err(|error| Failure::new(error.to_string()))?;
    println!("{}", kernel_matrix::table(&findings));
    let failed: Vec<&str> =
        findings.iter().filter(|finding| !finding.passed()).map(kernel_matrix::Finding::name).collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("memdex does not keep its promises on {}: see above", failed.join(", "))))
    }
}

/// The kernels of these names, or all of them.
fn chosen(names: &[String]) -> Vec<HostKernelSource> {
    let named = names.iter().filter_map(|name| HostKernelSource::named(name));
    if names.is_empty() { HOST_KERNELS.to_vec() } else { named.collect() }
}

/// Builds what `cargo xtask test` builds, so that nothing is compiled twice; returns what cargo says of it, in JSON.
fn build() -> Result<String, Failure> {
    let mut command: Command = cargo();
    command.args(["build", "--workspace", "--bins", "--tests", "--locked"]);
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::new(format!("cargo can't be run: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!("the build failed ({})", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The test programs wanted, by name.
fn tests_in(messages: &str) -> Vec<(String, PathBuf)> {
    let tests = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        let name = target["name"].as_str()?;
        let wanted = target["kind"].as_array()?.iter().any(|kind| kind == "test") && TESTS.contains(&name);
        let file = Path::new(message["executable"].as_str()?);
        wanted.then(|| (name.to_owned(), file.to_owned()))
    });
    tests.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_what_cargo_says() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"kind":["test"],"name":"ebpf"},"executable":"/t/deps/ebpf-1"}
            {"reason":"compiler-artifact","target":{"kind":["test"],"name":"unknown"},"executable":"/t/deps/unknown-1"}
            {"reason":"compiler-artifact","target":{"kind":["lib"],"name":"memory"},"executable":null}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(tests_in(messages), [("ebpf".to_owned(), PathBuf::from("/t/deps/ebpf-1"))]);
    }

    #[test]
    fn no_name_means_every_kernel() {
        assert_eq!(chosen(&[]), HOST_KERNELS);
        assert_eq!(chosen(&["6.12".to_owned()]), [HOST_KERNELS[1]]);
    }
}
