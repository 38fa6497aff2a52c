//! A writer that does nothing but write, watched by a daemon: what it loses, and what the daemon believes it loses.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use memdex_tests::{
    Scratch,
    daemon::{Daemon, Options},
};

use super::writer::{Ram, Writer};
use crate::{
    daemon,
    figure::{Bound, Figures},
};

/// So much that the back-off of hot pages alone would not keep it within the budget.
const MIB: usize = 1024;
/// Longer than a burst.
const WARM_UP: Duration = Duration::from_secs(12);
const MEASURED: Duration = Duration::from_secs(10);

/// What was seen with one budget.
struct Seen {
    /// Writes a nanosecond.
    rate: f64,
    /// What the daemon says, as a share.
    estimate: f64,
    /// Faults that the writer took a second, as the kernel counts them.
    faults: f64,
    /// The same as the daemon counts them.
    counted: f64,
}

/// `fault_ns`: what a fault takes, as measured in this run.
pub(super) fn measure(figures: &mut Figures, scratch: &Scratch, fault_ns: f64) {
    eprintln!("a busy writer in {MIB} MiB, watched with a budget of 1 % and without one");
    let mut writer = Writer::start(scratch, Ram::Memfd, MIB);
    let pages = writer.pages;
    writer.busy(Duration::from_secs(1), 0, pages);
    let before = writer.busy(MEASURED, 0, pages);
    let free = watched(scratch, &mut writer, "100");
    let between = writer.busy(MEASURED, 0, pages);
    let bound = watched(scratch, &mut writer, "1");
    let after = writer.busy(MEASURED, 0, pages);
    let loss = |seen: &Seen, before: f64, after: f64| 1.0 - seen.rate / ((before + after) / 2.0);
    let (free_loss, bound_loss) = (loss(&free, before, between), loss(&bound, between, after));
    let how = format!(
        "going round in {MIB} MiB; untracked it differs by {:.1} % from run to run; the daemon's estimate is {:.2} %",
        (after / before - 1.0) * 100.0,
        bound.estimate * 100.0
    );
    figures.add("guest_cost_busy_loss_percent", bound_loss * 100.0, "%", Bound::AtMost(2.0), how);
    let paid = |seen: &Seen| seen.faults * fault_ns / 1e9;
    let how = format!(
        "{:.0} faults a second, as the kernel counts them ({:.0} by the daemon), each {fault_ns:.0} ns; without a budget {:.0} ({:.0}) a second, {:.2} %",
        bound.faults,
        bound.counted,
        free.faults,
        free.counted,
        paid(&free) * 100.0
    );
    figures.add("guest_cost_busy_faults_percent", paid(&bound) * 100.0, "%", Bound::AtMost(1.5), how);
    let how = format!(
        "the daemon's estimate over faults times their price, without a budget: {:.2} % over {:.2} %; the speed differed by {:.1} %",
        free.estimate * 100.0,
        paid(&free) * 100.0,
        free_loss * 100.0
    );
    figures.add("guest_cost_estimate_ratio", free.estimate / paid(&free), "", Bound::AtMost(2.0), how);
}

fn watched(scratch: &Scratch, writer: &mut Writer, budget: &str) -> Seen {
    let arguments = ["--hash-threads", "1", "--guest-budget", budget];
    let options = Options {
        include: vec![format!("*-{}", writer.pid())],
        arguments: arguments.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let mut daemon = Daemon::start_with(scratch, &format!("daemon-{budget}"), &options);
    daemon::indexed(&daemon, writer.pid());
    let pages = writer.pages;
    writer.busy(WARM_UP, 0, pages);
    let before = (Instant::now(), faults_of(writer.pid()), faults_by(&daemon));
    writer.tell(&format!("busy {} 0 {pages}", MEASURED.as_millis()));
    thread::sleep(MEASURED - Duration::from_millis(200));
    let seconds = before.0.elapsed().as_secs_f64();
    let (taken, counted) = (faults_of(writer.pid()) - before.1, faults_by(&daemon) - before.2);
    let vm = daemon::vm(&daemon, writer.pid()).expect("the daemon watches the writer");
    let rate = writer.rate();
    daemon.stop();
    let estimate = vm.guest_cost_ppm as f64 / 1e6;
    Seen { rate, estimate, faults: taken / seconds, counted: counted / seconds }
}

/// Minor faults of a process since it began.
fn faults_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the writer runs");
    let (_, after) = stat.rsplit_once(") ").expect("the name ends with a parenthesis");
    // Field 10 of proc(5), counted from field 3 here.
    after.split(' ').nth(7).and_then(|text| text.parse().ok()).expect("a number")
}

/// Faults that the daemon has counted.
fn faults_by(daemon: &Daemon) -> f64 {
    let text = String::from_utf8_lossy(&daemon.get("/metrics").body).into_owned();
    let line = text.lines().find(|line| line.starts_with("memdex_vm_guest_faults_total{"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the daemon counts faults")
}
