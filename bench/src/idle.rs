//! What an idle guest costs, and how that grows with its memory.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use memdex_tests::{
    Scratch,
    image::{self, Workload},
    qemu::{Backend, Boot, Options, Qemu},
};

use crate::{
    daemon::{self, cpu_seconds},
    figure::{Bound, Figures},
    vmm::Vmm,
};

pub(crate) const NAMES: [&str; 2] = ["idle_core_share", "idle_cores_per_256gib"];

const MIB: u64 = 1024;
const WATCHED: Duration = Duration::from_secs(30);
/// GiB of the VMs that a straight line is laid through.
const SIZES: [usize; 3] = [1, 2, 4];
/// What the line is read at.
const LARGE: f64 = 256.0;
/// Longer than several audits of the largest one.
const WATCHED_LARGE: Duration = Duration::from_secs(90);

pub(crate) fn measure(figures: &mut Figures, wanted: impl Fn(&str) -> bool) {
    if wanted(NAMES[0]) {
        measure_guest(figures);
    }
    if wanted(NAMES[1]) {
        measure_sizes(figures);
    }
}

/// VMs of several sizes, every page different and known, that do nothing; each has a daemon of its own, and all are watched at the same time.
fn measure_sizes(figures: &mut Figures) {
    eprintln!("idle VMs of {SIZES:?} GiB, watched for {} s", WATCHED_LARGE.as_secs());
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
    let mut used = || -> Vec<f64> {
        watched.iter_mut().map(|(_, daemon)| cpu_nanoseconds(daemon.process().pid())).collect()
    };
    let (begun, before) = (Instant::now(), used());
    thread::sleep(WATCHED_LARGE);
    let elapsed = begun.elapsed().as_nanos() as f64;
    let shares: Vec<f64> = used().iter().zip(&before).map(|(now, before)| (now - before) / elapsed).collect();
    let (slope, intercept) = line(SIZES.map(|gib| gib as f64).iter().copied().zip(shares.iter().copied()));
    let percent: Vec<String> = shares.iter().map(|share| format!("{:.3}", share * 100.0)).collect();
    let how = format!(
        "VMs of {SIZES:?} GiB that do nothing, all pages known, take {} % of a core: {:.4} % and {:.4} % more for each GiB, read at {LARGE} GiB",
        percent.join(", "),
        intercept * 100.0,
        slope * 100.0
    );
    figures.add(NAMES[1], intercept + slope * LARGE, "cores", Bound::AtMost(0.1), how);
}

/// Processor time of all threads of a process, to the nanosecond: what an idle daemon takes is little.
fn cpu_nanoseconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon runs").flatten();
    threads
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        })
        .sum()
}

/// Slope and intercept of the straight line through points, by least squares.
fn line(points: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, f64) {
    let count = points.clone().count() as f64;
    let mean = |pick: fn((f64, f64)) -> f64| points.clone().map(pick).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (mut above, mut below) = (0.0, 0.0);
    for point in points {
        above += (point.0 - x) * (point.1 - y);
        below += (point.0 - x) * (point.0 - x);
    }
    (above / below, y - x * above / below)
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
    let (begun, before) = (Instant::now(), cpu_seconds(pid));
    thread::sleep(WATCHED);
    let share = (cpu_seconds(pid) - before) / begun.elapsed().as_secs_f64();
    let how = format!(
        "CPU time of the daemon over {} s; the guest boots Linux and does nothing",
        WATCHED.as_secs()
    );
    figures.add(NAMES[0], share * 100.0, "% of a core", Bound::AtMost(1.0), how);
}
