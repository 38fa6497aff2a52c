//! The machine that is measured on: what it is, and whether something else keeps it busy.

use std::fs;

/// Processors and their model, for people.
pub(crate) fn model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown CPU", |(_, model)| model.trim());
    format!("{} vCPUs, {model}", cpus())
}

/// How many processors this process may use.
pub(crate) fn cpus() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64)
}

/// Seconds of CPU, all CPUs together, in which there was nothing to do.
pub(crate) fn idle() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = text.lines().next().unwrap_or_default();
    let ticks: f64 = all.split_whitespace().nth(4).and_then(|idle| idle.parse().ok()).unwrap_or_default();
    ticks / rustix::param::clock_ticks_per_second() as f64
}
