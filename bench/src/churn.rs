//! Whether a daemon takes as much memory in the evening as it did in the morning: a day of writes, and of VMs that come and go, in minutes.
//!
//! Owns the day. In each quarter of an hour of it a VM that stays has [`WRITTEN`] pages written, a hundred a second as in a Linux guest that has a little to do, all with contents that were never there before;
//! and a VM comes, with contents of its own, is indexed, and goes. Pauses are left out, nothing else is.

use std::{fs, time::Duration};

use memdex_tests::{Scratch, wait};

use crate::{
    daemon::{self, metric, resident, settled},
    figure::{Bound, Figures, median},
    vmm::Vmm,
};

pub(crate) const NAME: &str = "daemon_growth_in_a_day";

/// Quarters of an hour.
const QUARTERS: usize = 96;
/// Three hours. After the first three every page has been written, and every table has been as large as it gets.
const HOURS: usize = 12;
/// Pages written in each.
const WRITTEN: usize = 90_000;
/// Of the VM that stays; and of each that does not.
const MIB: usize = 2048;
const MIB_PASSING: usize = 256;
/// Windows of pages that are written in turn: a page is at rest before it is written once more.
const WINDOWS: usize = (MIB << 8) / WRITTEN;

pub(crate) fn measure(figures: &mut Figures) {
    eprintln!(
        "a day of {QUARTERS} quarters of an hour: {WRITTEN} written pages and a VM of {MIB_PASSING} MiB in each"
    );
    let scratch = Scratch::new("bench-churn");
    let mut vmm = Vmm::start(&scratch, "vmm", MIB, 0, 1);
    let no_budget = ["--guest-budget", "100"].map(str::to_owned);
    let mut daemon = daemon::start_with(&scratch, "daemon", "memdex-bench-*", &no_budget);
    daemon::indexed(&daemon, vmm.pid());
    let pid = daemon.process().pid();
    let files = || fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon runs").count();
    let (mut sizes, mut open) = (Vec::new(), Vec::new());
    for quarter in 0..QUARTERS {
        vmm.write_at_once(quarter % WINDOWS * WRITTEN, WRITTEN);
        let passing = Vmm::start(&scratch, "passing", MIB_PASSING, 0, 1000 + quarter as u64);
        let gone = passing.pid();
        daemon::indexed(&daemon, gone);
        drop(passing);
        wait::until("the VM to be forgotten", Duration::from_secs(30), || {
            daemon.vm_of(gone).is_none().then_some(())
        });
        settled(&daemon, vmm.pid(), Duration::from_secs(60));
        sizes.push(resident(pid));
        open.push(files());
    }
    let read = metric(&daemon, "memdex_vm_pages_read_total");
    let written = (QUARTERS * WRITTEN) as f64;
    assert!(read >= written, "{read} pages of {written} that were written have been read");
    let (morning, evening) =
        (median(sizes[HOURS..2 * HOURS].to_vec()), median(sizes[QUARTERS - HOURS..].to_vec()));
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let largest = sizes.iter().copied().fold(0.0, f64::max);
    let how = format!(
        "{written} pages with new contents, {QUARTERS} VMs of {MIB_PASSING} MiB that came and went; resident memory {:.1} MiB from the third to the sixth hour, {:.1} in the last three, {:.1} at most; {} and {} open files",
        mib(morning),
        mib(evening),
        mib(largest),
        open[HOURS],
        open[QUARTERS - 1]
    );
    figures.add(NAME, evening / morning, "", Bound::AtMost(1.02), how);
}
