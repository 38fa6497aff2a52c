//! What a guest pays for its first write to an armed page, with the faults of two-stage paging, with the eBPF programs and without: as a ratio, because the processor is
//! emulated.

use std::time::Instant;

use memdex_tests::{Daemon, Scratch, Tiny, daemon::Options, tiny};

use crate::{abilities::Abilities, daemon::APPEAR, reporter::Reporter};

const PAGES: u64 = 1000;
const ROUNDS: u32 = 3;

pub(crate) fn check(reporter: &mut Reporter, abilities: &Abilities) {
    if !abilities.exact() {
        return;
    }
    one(reporter, "", &[]);
    // Soft-dirty bits are not used without eBPF.
    if abilities.page_by_page() {
        one(reporter, ", no eBPF", &["--witness", "write-protect"]);
    }
}

/// With these witnesses.
fn one(reporter: &mut Reporter, which: &str, witnesses: &[&str]) {
    let name = format!("every first write to an armed page is counted as a fault{which}");
    let measured = reporter.prepare(&name, || {
        let measured = measure(witnesses)?;
        let detail = format!("{} faults; {:.0} ns a page untracked", measured.faults, measured.untracked);
        Ok((measured, detail))
    });
    let Some(measured) = measured else { return };
    for (state, time) in [("armed", measured.armed), ("writable", measured.writable)] {
        let ratio = time / measured.untracked;
        reporter.fact(
            &format!("a guest's write: {state} / untracked{which}"),
            format!("{ratio:.1} (ratio, emulated)"),
        );
    }
}

/// Nanoseconds for a page.
struct Measured {
    untracked: f64,
    armed: f64,
    writable: f64,
    faults: u64,
}

fn measure(witnesses: &[&str]) -> Result<Measured, String> {
    let scratch = Scratch::new("cost");
    let options = tiny::Options { mib: 32, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("c"), &options);
    let pid = guest.pid();
    let mut write = |seed: u32| {
        let began = Instant::now();
        guest.write(1, PAGES, seed);
        began.elapsed().as_nanos() as f64 / PAGES as f64
    };
    write(0);
    let untracked = median((1..=ROUNDS).map(&mut write).collect());

    // Between two ticks nothing is armed but by a sync: what is written twice in a row takes its fault the first time.
    let arguments = ["--tick-ms", "10000", "--guest-budget", "100"].iter().chain(witnesses);
    let arguments = arguments.map(|argument| (*argument).to_owned()).collect();
    let mut daemon = Daemon::start_with(&scratch, "memdexd", &Options { arguments, ..Options::default() });
    let (vm, _) = daemon.wait_for_vm(pid, APPEAR);
    daemon.sync(&vm.id);
    let before = faults(&daemon)?;
    let (mut armed, mut writable) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        armed.push(write(round * 100));
        writable.push(write(round * 100 + 1));
        daemon.sync(&vm.id);
    }
    let faults = faults(&daemon)? - before;
    daemon.stop();
    let expected = PAGES * u64::from(ROUNDS);
    if faults != expected {
        return Err(format!("{faults} faults were counted, and {expected} armed pages written"));
    }
    Ok(Measured { untracked, armed: median(armed), writable: median(writable), faults })
}

fn faults(daemon: &Daemon) -> Result<u64, String> {
    let answer = daemon.get("/metrics");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let line = text.lines().find(|line| line.starts_with("memdex_vm_guest_faults_total{"));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    value.map(|value| value as u64).ok_or_else(|| "no metric memdex_vm_guest_faults_total".to_owned())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
