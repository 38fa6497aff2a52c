//! Protects hosts that move several guests at once: they share their places, the host's bandwidth and what their memories have in common.

use std::{
    collections::HashSet,
    process::Stdio,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, Qemu, Scratch,
    image::{self, Check, Workload},
    process::Process,
    qemu::{Backend, Checks, Options},
    wait,
};
use serde_json::Value;

use crate::hosts::{migrate, options, start, tcp, tiny};

const GUESTS: usize = 3;
const MIB: u64 = 128;
const CHECK: Check = Check { mib: 4, rate: 100, hot: 2 };
/// Bytes a second that the host may send: so few that what it sends takes some seconds.
const CAP: u64 = 15_000_000;
const BOUND: Duration = Duration::from_secs(90);

struct Guest {
    qemu: Qemu,
    name: String,
    options: Options,
    checks: Checks,
}

fn boot(scratch: &Scratch, host: &Daemon, number: usize) -> Guest {
    // Another seed is another content; all the rest they have from one image.
    let workload = Workload { rate: 5, files: 8, file_kib: 16, seed: 10 + number as u32 };
    let options = tiny(scratch.shm(&format!("a{number}")), MIB, &workload, &CHECK, None);
    let name = format!("{}-{number}", scratch.name("a"));
    let qemu = start(scratch, &name, &options, host);
    Guest { qemu, name, options, checks: Checks::default() }
}

/// A place for a guest at the other host.
fn place(scratch: &Scratch, host: &Daemon, guest: &Guest, prefix: &str, number: usize) -> (Qemu, String) {
    let ram = Backend::File(scratch.shm(&format!("{prefix}-to-{number}")));
    let name = format!("{}-to-{number}", scratch.name(prefix));
    (start(scratch, &name, &guest.options.destination(ram), host), name)
}

/// What a guest's memory holds.
fn contents(host: &Daemon, vm: &str) -> HashSet<String> {
    host.pages(vm).into_iter().filter_map(|page| page.fingerprint).collect()
}

fn number(document: &Value, section: &str, name: &str) -> u64 {
    document[section][name].as_u64().expect("a number")
}

#[test]
fn guests_that_move_together_share_places_bandwidth_and_what_they_have_in_common() {
    let scratch = Scratch::new("many");
    let config = scratch.path("config.toml");
    // Two at once is the default.
    std::fs::write(&config, format!("[migration]\nkeep_mib = 0\nmax_bandwidth = {CAP}\n"))
        .expect("a configuration");
    let config = config.display().to_string();
    let host = |name: &str, prefix: &str| {
        Daemon::start_with(&scratch, name, &options(&scratch, prefix, &["--config", &config]))
    };
    let (a, b) = (host("host-a", "a"), host("host-b", "b"));
    let mut guests: Vec<Guest> = (0..GUESTS).map(|number| boot(&scratch, &a, number)).collect();
    for guest in &mut guests {
        guest.qemu.wait_for_serial(image::READY, Duration::from_secs(120));
        guest.checks = guest.qemu.check_ok(Checks::default());
    }

    // What one needs that comes alone. It goes home again, and nothing of it stays.
    let (there, there_name) = place(&scratch, &b, &guests[0], "b", 90);
    let (alone, code) = migrate(&a, &guests[0].name, &tcp(&b), &there_name, &["--downtime", "500ms"]);
    assert_eq!(code, Some(0), "{alone}");
    let (home, home_name) = place(&scratch, &a, &guests[0], "a", 91);
    let (report, code) = migrate(&b, &there_name, &tcp(&a), &home_name, &["--downtime", "500ms"]);
    assert_eq!(code, Some(0), "{report}");
    drop(there);
    (guests[0].qemu, guests[0].name) = (home, home_name);

    let places: Vec<_> =
        guests.iter().enumerate().map(|(number, guest)| place(&scratch, &b, guest, "b", number)).collect();
    let contents: Vec<HashSet<String>> = guests.iter().map(|guest| contents(&a, &guest.name)).collect();
    let each: usize = contents.iter().map(HashSet::len).sum();
    let together = contents.iter().flatten().collect::<HashSet<_>>().len();
    eprintln!("{each} contents, {together} of them different");
    let begun = Instant::now();
    let mut commands = Vec::new();
    for (guest, (_, to)) in guests.iter().zip(&places) {
        let arguments = ["migrate", &guest.name, "--to", &tcp(&b), "--dest-vm", to, "--downtime", "500ms"];
        let mut command = a.memdex_command(&scratch, &arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        commands.push(Process::start("memdex migrate", &mut command));
    }
    let ids = || -> Vec<String> {
        let all = a.get("/v1/migrations").json();
        let outgoing = all.as_array().into_iter().flatten().filter(|one| one["direction"] == "outgoing");
        // The first one is the one that went alone.
        outgoing.skip(1).filter_map(|one| one["id"].as_str().map(str::to_owned)).collect()
    };
    let (ids, _) = wait::until("all to begin", BOUND, || Some(ids()).filter(|ids| ids.len() == GUESTS));
    let mut queued = false;
    let (documents, _) = wait::until("all to end", BOUND, || {
        let all = a.get("/v1/migrations").json();
        let ours = |one: &&Value| ids.iter().any(|id| one["id"] == id.as_str());
        let documents: Vec<Value> = all.as_array().into_iter().flatten().filter(ours).cloned().collect();
        let ended = documents.iter().filter(|one| !one["outcome"].is_null()).count();
        let waiting = documents.iter().filter(|one| one["phase"] == "queued").count();
        queued |= ended == 0 && waiting == 1;
        (ended == GUESTS).then_some(documents)
    });
    let took = begun.elapsed();
    assert!(queued, "one of three waits for its turn");
    for document in &documents {
        assert_eq!(document["outcome"], "completed", "{document}");
    }
    for command in &mut commands {
        assert!(command.wait(BOUND).0.success());
    }

    let sum = |section: &str, name: &str| -> u64 {
        documents.iter().map(|document| number(document, section, name)).sum()
    };
    let (sent, wire) = (sum("pages", "sent"), sum("bytes", "wire"));
    eprintln!(
        "alone {} pages sent, together {sent}; {wire} bytes in {took:?}",
        number(&alone, "pages", "sent")
    );
    // They write meanwhile; that apart each content crosses once, whoever has it.
    let written = 3 * 400 * took.as_secs();
    assert!(sent < together as u64 + written, "{sent} pages are sent for {together} contents of {each}");
    assert!(sent < each as u64 * 9 / 10, "{sent} pages are sent for {each} contents");
    // Bytes of both ways are counted, and the cap is for one.
    let most = CAP as f64 * took.as_secs_f64() * 1.1 + 1e6;
    assert!((wire as f64) < most, "{wire} bytes within {took:?}");

    for (guest, (mut qemu, _)) in guests.into_iter().zip(places) {
        assert_eq!(qemu.status(), "running");
        qemu.check_ok(guest.checks);
    }
}
