//! What an idle guest costs.

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
    daemon::{self, cpu_seconds},
    figure::{Bound, Figures},
};

const MIB: u64 = 1024;
const WATCHED: Duration = Duration::from_secs(30);

pub(crate) fn measure(figures: &mut Figures) {
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
    figures.add("idle_core_share", share * 100.0, "% of a core", Bound::AtMost(1.0), how);
}
