//! Freshness and the daemon's CPU time, over the pages that are written a second.
//!
//! Each rate twice: once with nobody looking, for the CPU time, and once watched over HTTP, for the freshness (who looks every two milliseconds costs the daemon more than the writes).
//! All pages are quiet ones: each is written once. With the budget of a guest as it is by default, and without one, where nothing is held back.

use std::{
    thread,
    time::{Duration, Instant},
};

use memdex_tests::Scratch;

use crate::{
    cpu_clock,
    daemon::{self, metric, settled},
    freshness::{delays, quantile},
    vmm::Vmm,
};

const RATES: [usize; 5] = [1_000, 5_000, 10_000, 20_000, 50_000];
pub(super) const MIB: usize = 4096;
pub(super) const SECONDS: usize = 2;
/// In percent of a vCPU: the default, and all of it.
pub(super) const BUDGETS: [&str; 2] = ["1", "100"];

/// The last marks are taken with the next tick, and nothing is stale before.
const LOOK: Duration = Duration::from_millis(100);

/// A rate at which was written.
pub(super) struct Point {
    pub(super) budget: &'static str,
    pub(super) per_second: usize,
    /// Milliseconds from a write until HTTP shows it.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Share of a core that the daemon took from the first write until all was known.
    pub(super) cpu_percent: f64,
    /// Microseconds of its time for each page that was written.
    pub(super) cpu_us_per_page: f64,
    /// Seconds after the last write until everything was known; at least a [`LOOK`].
    pub(super) behind_seconds: f64,
    /// Pages that were left unarmed for a while because of the budget.
    pub(super) held: f64,
}

pub(super) fn measure() -> Vec<Point> {
    BUDGETS.into_iter().flat_map(with).collect()
}

fn with(budget: &'static str) -> Vec<Point> {
    eprintln!("writes to quiet pages of {MIB} MiB at {RATES:?} a second, with a budget of {budget} %");
    let scratch = Scratch::new("bench-rate");
    let mut vmm = Vmm::start(&scratch, "vmm", MIB, 0, 1);
    let arguments = ["--guest-budget", budget].map(str::to_owned);
    let mut daemon = daemon::start_with(&scratch, "daemon", &format!("*-{}", vmm.pid()), &arguments);
    daemon::indexed(&daemon, vmm.pid());
    let (vmm_pid, pid) = (vmm.pid(), daemon.process().pid());
    let mut next = 0;
    let mut points = Vec::new();
    for per_second in RATES {
        let count = per_second * SECONDS;
        // Pages are quiet when nothing was published for them lately.
        thread::sleep(Duration::from_secs(2));
        let before = (cpu_clock::used(pid).as_secs_f64(), metric(&daemon, "memdex_vm_arming_held_total"));
        let begun = Instant::now();
        vmm.write(next, count, per_second);
        let ended = Instant::now();
        thread::sleep(LOOK);
        settled(&daemon, vmm_pid, Duration::from_secs(60));
        let behind_seconds = ended.elapsed().as_secs_f64();
        let cpu = cpu_clock::used(pid).as_secs_f64() - before.0;
        let cpu_percent = cpu / begun.elapsed().as_secs_f64() * 100.0;
        let held = metric(&daemon, "memdex_vm_arming_held_total") - before.1;
        thread::sleep(Duration::from_secs(2));
        let delays = delays(&daemon, &mut vmm, next + count, count, per_second);
        settled(&daemon, vmm_pid, Duration::from_secs(60));
        next += 2 * count;
        let (p50_ms, p99_ms) = (quantile(&delays, 0.5), quantile(&delays, 0.99));
        eprintln!(
            "  {per_second} a second: median {p50_ms:.0} ms, p99 {p99_ms:.0} ms, {cpu_percent:.1} % of a core"
        );
        let cpu_us_per_page = cpu * 1e6 / count as f64;
        points.push(Point {
            budget,
            per_second,
            p50_ms,
            p99_ms,
            cpu_percent,
            cpu_us_per_page,
            behind_seconds,
            held,
        });
    }
    points
}
