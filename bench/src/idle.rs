//! What an idle guest costs, and how that grows with its memory.

use std::{
    thread,
    time::{Duration, Instant},
};

use memdex_tests::{
    Scratch,
    image::{self, Workload},
    qemu::{Backend, Boot, Options, Qemu},
};

use crate::{
    cpu_clock, daemon,
    figure::{Bound, Figures},
    vmm::Vmm,
};

pub(crate) const NAMES: [&str; 3] = ["idle_core_share", "idle_cores_per_256gib", "idle_cores_64_vms"];

const MIB: u64 = 1024;
const WATCHED: Duration = Duration::from_secs(30);
/// GiB of the VMs that a straight line is laid through.
const SIZES: [usize; 3] = [1, 4, 12];
/// What the line is read at.
const LARGE: f64 = 256.0;
/// Each is watched so many times, by turns of all: longer than several audits of the largest one.
const TIMES: usize = 12;
const EACH: Duration = Duration::from_secs(12);
/// VMs of one daemon that another straight line is laid through, how large each is, and how many the line is read at.
const COUNTS: [usize; 3] = [1, 8, 32];
const SMALL: usize = 64;
const MANY: f64 = 64.0;

pub(crate) fn measure(figures: &mut Figures, wanted: impl Fn(&str) -> bool) {
    if wanted(NAMES[0]) {
        measure_guest(figures);
    }
    if wanted(NAMES[1]) {
        measure_sizes(figures);
    }
    if wanted(NAMES[2]) {
        measure_counts(figures);
    }
}

/// VMs of several sizes, every page different and known, that do nothing; each has a daemon of its own, and all are watched at the same time. What the
/// straight line may be wrong by, from how far what was seen lies off it, is added twice: what is left is not just noise that happened to be small.
fn measure_sizes(figures: &mut Figures) {
    eprintln!("idle VMs of {SIZES:?} GiB, watched {TIMES} times for {} s", EACH.as_secs());
    let scratch = Scratch::new("bench-idle-sizes");
    let mut watched: Vec<_> = SIZES
        .iter()
        .map(|gib| {
            let vmm = Vmm::start(&scratch, &format!("vmm{gib}"), gib << 10, 0, *gib as u64);
            let daemon = daemon::start(&scratch, &format!("daemon{gib}"), &format!("*-{}", vmm.pid()));
            daemon::indexed(&daemon, vmm.pid());
            (vmm, daemon)
        })
        .collect();
    thread::sleep(Duration::from_secs(5));
    let mut used = || -> Vec<Duration> {
        watched.iter_mut().map(|(_, daemon)| cpu_clock::used(daemon.process().pid())).collect()
    };
    let mut points = Vec::new();
    for _ in 0..TIMES {
        let (begun, before) = (Instant::now(), used());
        thread::sleep(EACH);
        let elapsed = begun.elapsed();
        let shares =
            used().into_iter().zip(before).map(|(now, before)| (now - before).div_duration_f64(elapsed));
        points.extend(SIZES.map(|gib| gib as f64).into_iter().zip(shares));
    }
    let line = Line::through(&points);
    let of = |gib: usize| {
        let shares: Vec<f64> =
            points.iter().filter(|point| point.0 == gib as f64).map(|point| point.1).collect();
        format!("{:.3}", shares.iter().sum::<f64>() / shares.len() as f64 * 100.0)
    };
    let error = line.error(LARGE);
    let how = format!(
        "VMs of {SIZES:?} GiB that do nothing, all pages known, take {} % of a core: {:.3} % and {:.5} % more for each GiB, read at {LARGE} GiB with twice its error of {:.3} cores",
        SIZES.map(of).join(", "),
        line.intercept * 100.0,
        line.slope * 100.0,
        error
    );
    figures.add(NAMES[1], line.at(LARGE).max(0.0) + 2.0 * error, "cores", Bound::AtMost(0.1), how);
}

/// A daemon that has many small VMs that do nothing, so that what is seen is what each VM costs, however large it is. Every page is different and known.
fn measure_counts(figures: &mut Figures) {
    eprintln!("{COUNTS:?} idle VMs of {SMALL} MiB in one daemon, watched for {} s", WATCHED.as_secs());
    let scratch = Scratch::new("bench-idle-counts");
    let mut vmms: Vec<Vmm> = Vec::new();
    let mut points = Vec::new();
    for count in COUNTS {
        while vmms.len() < count {
            let at = vmms.len();
            vmms.push(Vmm::start(&scratch, &format!("vmm{at}"), SMALL, 0, at as u64 + 1));
        }
        let include = vmms.iter().map(|vmm| format!("*-{}", vmm.pid())).collect();
        let mut daemon = daemon::start_for(&scratch, &format!("daemon{count}"), include, &[]);
        for vmm in &vmms {
            daemon::indexed(&daemon, vmm.pid());
        }
        thread::sleep(Duration::from_secs(5));
        let pid = daemon.process().pid();
        for _ in 0..TIMES / 2 {
            let (begun, before) = (Instant::now(), cpu_clock::used(pid));
            thread::sleep(WATCHED / (TIMES as u32 / 2));
            let share = (cpu_clock::used(pid) - before).div_duration_f64(begun.elapsed());
            points.push((count as f64, share));
        }
    }
    let line = Line::through(&points);
    let error = line.error(MANY);
    let how = format!(
        "{COUNTS:?} VMs that do nothing, in one daemon: {:.3} % of a core and {:.3} % more for each, read at {MANY} VMs with twice its error of {error:.3} cores",
        line.intercept * 100.0,
        line.slope * 100.0,
    );
    figures.add(NAMES[2], line.at(MANY).max(0.0) + 2.0 * error, "cores", Bound::AtMost(0.1), how);
}

/// The straight line through points, by least squares.
struct Line {
    slope: f64,
    intercept: f64,
    /// Standard deviation of points from it.
    scatter: f64,
    count: f64,
    middle: f64,
    /// Sum of the squares of how far points are from the middle.
    spread: f64,
}

impl Line {
    fn through(points: &[(f64, f64)]) -> Self {
        let count = points.len() as f64;
        let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
        let intercept = y - x * slope;
        let off: f64 = points.iter().map(|point| (point.1 - intercept - slope * point.0).powi(2)).sum();
        Self { slope, intercept, scatter: (off / (count - 2.0)).sqrt(), count, middle: x, spread }
    }

    fn at(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }

    /// Standard error of what it says at `x`.
    fn error(&self, x: f64) -> f64 {
        self.scatter * (1.0 / self.count + (x - self.middle).powi(2) / self.spread).sqrt()
    }
}

fn measure_guest(figures: &mut Figures) {
    eprintln!("an idle Linux guest of {MIB} MiB, watched for {} s", WATCHED.as_secs());
    let guest = image::tiny_guest().expect("the guest image can be built");
    let scratch = Scratch::new("bench-idle");
    let workload = Workload { rate: 0, ..Workload::default() };
    let boot = Boot {
        kernel: guest.kernel.vmlinuz.clone(),
        initrd: guest.initrd.clone(),
        command_line: guest.command_line(&workload),
    };
    let name = scratch.name("idle");
    let mut guest =
        Qemu::start(&scratch, &name, &Options::linux(MIB, Backend::File(scratch.shm("idle")), boot));
    guest.wait_for_serial(image::READY, Duration::from_secs(120));
    let mut daemon = daemon::start(&scratch, "daemon", &name);
    daemon::indexed(&daemon, guest.pid());
    thread::sleep(Duration::from_secs(3));
    let pid = daemon.process().pid();
    let (begun, before) = (Instant::now(), cpu_clock::used(pid));
    thread::sleep(WATCHED);
    let share = (cpu_clock::used(pid) - before).div_duration_f64(begun.elapsed());
    let how = format!(
        "CPU time of the daemon over {} s; the guest boots Linux and does nothing",
        WATCHED.as_secs()
    );
    figures.add(NAMES[0], share * 100.0, "% of a core", Bound::AtMost(1.0), how);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_sure_it_is() {
        let exact = Line::through(&[(1.0, 3.0), (2.0, 5.0), (4.0, 9.0)]);
        assert!((exact.at(100.0) - 201.0).abs() < 1e-9 && exact.error(100.0) < 1e-9);
        let noisy = Line::through(&[(1.0, 1.0), (2.0, 0.0), (3.0, 1.0), (4.0, 0.0)]);
        assert!(noisy.error(256.0) > 50.0 * noisy.error(2.5), "far from what was seen nothing is sure");
    }
}
