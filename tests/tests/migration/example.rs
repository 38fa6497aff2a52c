//! Protects the library as other tools use it: its example program, as it stands in the documentation, moves a VM whose name is the same on both hosts.

use std::{path::PathBuf, process::Command, time::Duration};

use memdex_tests::{
    Daemon, Qemu, Scratch,
    image::{self, Check, Workload},
    qemu::{Backend, Checks},
};

use crate::hosts::{options, tcp, tiny};

const CHECK: Check = Check { mib: 16, rate: 50, hot: 2 };
const WORKLOAD: Workload = Workload { rate: 5, files: 8, file_kib: 16, seed: 3 };

/// The example, built if it is not.
fn example() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    // Of the whole workspace, as the tests were: else half of it would be compiled anew with other features.
    cargo.args(["build", "--quiet", "--locked", "--workspace", "--example", "migrate"]);
    cargo.args(["--message-format", "json", "--manifest-path"]);
    cargo.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    let output = cargo.output().expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let built = messages.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    let path = built.filter_map(|message| Some(message["executable"].as_str()?.into())).next();
    path.expect("cargo says where the example is")
}

#[test]
fn the_example_program_moves_a_vm() {
    let example = example();
    let (scratch, elsewhere) = (Scratch::new("example"), Scratch::new("example-b"));
    let name = scratch.name("a");
    let start_host = |scratch: &Scratch, name: &str, qemu: &Qemu| {
        let mut options = options(scratch, "a", &[]);
        // Of VMs with one name each host has its own.
        options.include = vec![format!("vm-{}-*", qemu.pid())];
        let daemon = Daemon::start_with(scratch, name, &options);
        let _ = daemon.wait_for_vm(qemu.pid(), Duration::from_secs(10));
        daemon
    };
    let settings = tiny(scratch.shm("ram"), 96, &WORKLOAD, &CHECK, None);
    let mut source = Qemu::start(&scratch, &name, &settings);
    source.wait_for_serial(image::READY, Duration::from_secs(120));
    let checks = source.check_all(Checks::default());
    let a = start_host(&scratch, "host-a", &source);
    let there = settings.destination(Backend::File(elsewhere.shm("ram")));
    let mut destination = Qemu::start(&elsewhere, &name, &there);
    // A host presents its own token to others.
    std::fs::copy(scratch.path("token"), elsewhere.path("token")).expect("a token");
    let b = start_host(&elsewhere, "host-b", &destination);

    let run = |arguments: &[&str]| {
        let mut command = Command::new(&example);
        command.args(arguments).env("MEMDEX_HOST", a.url());
        let output = command.output().expect("the example can be run");
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code(), text)
    };
    let (code, text) = run(&["no-such-vm", &tcp(&b), "30"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no-such-vm") && !text.contains("migration "), "{text}");

    let (code, text) = run(&[&name, &tcp(&b), "60"]);
    assert_eq!(code, Some(0), "{text}");
    for words in ["already there", "migration ", "done in ", "the guest stood still for "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    source.wait_for_exit(Duration::from_secs(5));
    assert_eq!(destination.status(), "running");
    destination.check_all(checks);
}
