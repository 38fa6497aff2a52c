//! Protects what a migration can be told, and what is there if nothing is said: what becomes of the VM at the source, what is kept of it there, other
//! monitors, TLS; and the count of bytes that the summary shows.

use std::{fs, net::TcpListener, time::Duration};

use memdex_tests::{
    Daemon, Qemu, Scratch,
    image::{self, Check, Workload},
    qemu::{Backend, Checks, Options},
    relay::Relay,
};
use serde_json::Value;

use crate::hosts::{Hosts, migrate, options, start, tcp, tiny};

const CHECK: Check = Check { mib: 48, rate: 200, hot: 8 };
const WORKLOAD: Workload = Workload { rate: 10, files: 32, file_kib: 64, seed: 5 };
const BOOT: Duration = Duration::from_secs(120);

fn guest(scratch: &Scratch, host: &Daemon) -> (Options, Qemu, Checks) {
    let options = tiny(scratch.shm("ram0"), 192, &WORKLOAD, &CHECK, None);
    let mut guest = start(scratch, &scratch.name("a"), &options, host);
    guest.wait_for_serial(image::READY, BOOT);
    let checks = guest.check_all(Checks::default());
    (options, guest, checks)
}

fn bytes(report: &Value, which: &str) -> u64 {
    report["bytes"][which].as_u64().unwrap_or_else(|| panic!("a number of bytes: {report}"))
}

fn metric(daemon: &Daemon, name: &str) -> u64 {
    let text = String::from_utf8_lossy(&daemon.get("/metrics").body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
}

/// Bytes on the wire there and back, and what the first host kept meanwhile.
fn there_and_back(keep: &str) -> (u64, u64, u64) {
    let scratch = Scratch::new("keep");
    let config = scratch.path("config.toml");
    fs::write(&config, format!("[migration]\n{keep}\n")).expect("a file can be written");
    let config = config.display().to_string();
    let host = |prefix: &str| {
        Daemon::start_with(
            &scratch,
            &format!("host-{prefix}"),
            &options(&scratch, prefix, &["--config", &config]),
        )
    };
    let (a, b) = (host("a"), host("b"));
    let (options, mut first, checks) = guest(&scratch, &a);
    let go = |from: &Daemon, vm: &str, to: &Daemon, prefix: &str, checks| {
        let dest = format!("{}-2", scratch.name(prefix));
        let there = options.destination(Backend::File(scratch.shm(&format!("ram-{prefix}"))));
        let mut waiting = start(&scratch, &dest, &there, to);
        let (report, code) = migrate(from, vm, &tcp(to), &dest, &[]);
        assert_eq!(code, Some(0), "{report}");
        let checks = waiting.check_ok(checks);
        (waiting, dest, bytes(&report, "wire"), checks)
    };
    let (mut second, name, forth, checks) = go(&a, &scratch.name("a"), &b, "b", checks);
    first.wait_for_exit(Duration::from_secs(5));
    // A name would keep the memory, whatever the daemon does.
    fs::remove_file(scratch.shm("ram0")).expect("the RAM file of the VM that has gone");
    // The next sweep gives up what is not to be kept.
    memdex_tests::wait::pause(Duration::from_secs(2));
    let kept = metric(&a, "memdex_kept_bytes");
    let (mut third, _, back, checks) = go(&b, &name, &a, "a", checks);
    second.wait_for_exit(Duration::from_secs(5));
    third.check_all(checks);
    (forth, back, kept)
}

#[test]
fn what_a_vm_leaves_behind_makes_its_return_nearly_free() {
    let (forth, back, kept) = there_and_back("");
    eprintln!("{forth} bytes there, {back} back, {kept} kept");
    assert!(kept > 32 << 20, "{kept} bytes were kept");
    assert!(back < forth / 4, "{forth} bytes there, {back} back");
}

#[test]
fn nothing_is_kept_of_a_vm_beyond_what_was_allowed() {
    let (forth, back, kept) = there_and_back("keep_mib = 8");
    assert_eq!(kept, 0, "it does not fit");
    assert!(back > forth / 2, "{forth} bytes there, {back} back");
}

#[test]
fn a_vm_moves_over_tls_and_its_source_stays_paused() {
    let scratch = Scratch::new("tls");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .expect("a certificate can be made");
    let write = |name: &str, text: &str| {
        let path = scratch.path(name);
        fs::write(&path, text).expect("a file can be written");
        path.display().to_string()
    };
    let (certificate, key) =
        (write("host.pem", &made.cert.pem()), write("host.key", &made.signing_key.serialize_pem()));
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let a = write("a.toml", &format!("[tls]\nca = {certificate:?}\n"));
    let b = write(
        "b.toml",
        &format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\nca = {certificate:?}\n"),
    );
    let a = Daemon::start_with(&scratch, "host-a", &options(&scratch, "a", &["--config", &a]));
    let listen = format!("tls://{free}");
    let b = Daemon::start_with(
        &scratch,
        "host-b",
        &options(&scratch, "b", &["--config", &b, "--listen", &listen]),
    );
    let (options, mut guest, checks) = guest(&scratch, &a);
    let (name, dest) = (scratch.name("a"), scratch.name("b"));
    let waiting = options.destination(Backend::File(scratch.shm("ram1")));
    let mut waiting = start(&scratch, &dest, &waiting, &b);
    let relay = Relay::to(free).expect("a relay between the hosts");
    let to = format!("tls://{}", relay.address());
    let (here, there) =
        (guest.memdex_monitor().display().to_string(), waiting.memdex_monitor().display().to_string());
    let more = ["--source", "pause", "--qmp", &here, "--dest-qmp", &there];
    let (report, code) = migrate(&a, &name, &to, &dest, &more);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(waiting.status(), "running");
    let (wire, crossed) = (bytes(&report, "wire"), relay.bytes());
    // TLS adds 22 bytes to each of its records, and a handshake for each connection.
    let most = wire + wire / 50 + (64 << 10);
    assert!((wire..most).contains(&crossed), "{crossed} bytes crossed, and {wire} were counted");
    waiting.check_all(checks);
    // What is left at the source is not to run again.
    assert!(guest.is_running(), "its VMM is kept");
    assert_eq!(guest.status(), "postmigrate");
    let again = format!("{}-again", scratch.name("b"));
    let third = options.destination(Backend::File(scratch.shm("ram2")));
    let mut third = start(&scratch, &again, &third, &b);
    let (report, code) = migrate(&a, &name, &to, &again, &more[2..4]);
    assert_eq!(code, Some(1), "{report}");
    assert!(report["reason"].as_str().is_some_and(|why| why.contains("moved away already")), "{report}");
    assert_eq!((guest.status(), third.status()), ("postmigrate".to_owned(), "inmigrate".to_owned()));
    assert_eq!(waiting.status(), "running");
}

/// The checks of a plan that failed, in words.
fn failed(plan: &Value) -> Vec<String> {
    let checks = plan["checks"].as_array().unwrap_or_else(|| panic!("a plan has checks: {plan}"));
    let failed = checks.iter().filter(|check| check["ok"] == false);
    failed.map(|check| check["detail"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_dry_run_says_what_is_in_the_way_and_moves_nothing() {
    let scratch = Scratch::new("dry");
    let hosts = Hosts::start(&scratch);
    let (options, mut guest, checks) = guest(&scratch, &hosts.a);
    let name = scratch.name("a");
    let file = |name: &str| Backend::File(scratch.shm(name));
    let dest = |which: &str| format!("{}-{which}", scratch.name("b"));
    let other_size = Options { mib: 224, ..options.clone() }.destination(file("other-size"));
    let not_waiting = Options { backend: file("not-waiting"), ..options.clone() };
    let private = options.destination(Backend::Plain);
    let right = options.destination(file("right"));
    let mut there: Vec<(&str, Qemu, Option<&str>)> = [
        ("other-size", other_size, Some("start the waiting one with the same -m")),
        ("not-waiting", not_waiting, Some("start it with -incoming defer")),
        ("private", private, Some("share")),
        ("right", right, None),
    ]
    .into_iter()
    .map(|(which, options, words)| (which, start(&scratch, &dest(which), &options, &hosts.b), words))
    .collect();
    for (which, qemu, words) in &mut there {
        let before = qemu.status();
        let (plan, code) = migrate(&hosts.a, &name, &tcp(&hosts.b), &dest(which), &["--dry-run"]);
        let failed = failed(&plan);
        eprintln!("{which}: {failed:?}");
        match words {
            Some(words) => {
                assert!(failed.iter().any(|detail| detail.contains(*words)), "{which}: {failed:?}");
            }
            None => assert!(failed.is_empty(), "{which}: {failed:?}"),
        }
        assert_eq!(
            (&plan["possible"], code),
            (&Value::Bool(words.is_none()), Some(i32::from(words.is_some())))
        );
        assert_eq!((guest.status(), qemu.status()), ("running".to_owned(), before), "{which}: nothing moves");
    }
    let (plan, code) = migrate(&hosts.a, &name, &tcp(&hosts.b), "nobody", &["--dry-run"]);
    assert!(
        code == Some(1)
            && failed(&plan).iter().any(|detail| detail.contains("waits at the destination: start it there")),
        "{plan}"
    );
    guest.check_all(checks);
}

#[test]
fn a_vm_whose_writes_may_go_unseen_is_read_again_while_it_stands_still() {
    let scratch = Scratch::new("unseen");
    let a = Daemon::start_with(&scratch, "host-a", &options(&scratch, "a", &["--witness", "rehash"]));
    let b = Daemon::start_with(&scratch, "host-b", &options(&scratch, "b", &[]));
    let (options, mut guest, checks) = guest(&scratch, &a);
    let (name, dest) = (scratch.name("a"), scratch.name("b"));
    let vm = a.vm_of(guest.pid()).expect("it runs");
    assert_eq!(vm.tracking, "advisory", "{:?}", vm.advisory_reasons);
    let there = options.destination(Backend::File(scratch.shm("ram1")));
    let mut waiting = start(&scratch, &dest, &there, &b);
    let (plan, code) = migrate(&a, &name, &tcp(&b), &dest, &["--dry-run"]);
    assert_eq!((&plan["tracking"], code), (&Value::from("advisory"), Some(0)), "{plan}");
    let (report, code) = migrate(&a, &name, &tcp(&b), &dest, &["--on-no-converge", "stop"]);
    assert_eq!(code, Some(0), "{report}");
    waiting.check_all(checks);
    guest.wait_for_exit(Duration::from_secs(5));
}
