//! The first index, over the memory of a VM in which every page differs.

use memdex_tests::Scratch;

use crate::{cpu_clock, daemon, vmm::Vmm};

const MIB: [usize; 4] = [256, 1024, 2048, 4096];

/// A VM that was indexed.
pub(super) struct Point {
    pub(super) mib: usize,
    /// From attaching to the last page.
    pub(super) seconds: f64,
    /// The same in processor time of the daemon, its start included.
    pub(super) cpu_seconds: f64,
    /// Memory that the daemon takes afterwards, all of it, for each page.
    pub(super) bytes_per_page: f64,
    /// The same, less what a daemon takes that watches nothing.
    pub(super) more_bytes_per_page: f64,
}

pub(super) fn measure() -> Vec<Point> {
    eprintln!("first index of {MIB:?} MiB");
    let scratch = Scratch::new("bench-size");
    let mut idle = daemon::start(&scratch, "idle", "none");
    let alone = daemon::resident(idle.process().pid());
    idle.stop();
    MIB.into_iter().map(|mib| point(mib, alone)).collect()
}

fn point(mib: usize, alone: f64) -> Point {
    let scratch = Scratch::new("bench-size");
    let vmm = Vmm::start(&scratch, "vmm", mib, 0, 1);
    let mut daemon = daemon::start(&scratch, "daemon", &format!("*-{}", vmm.pid()));
    let vm = daemon::indexed(&daemon, vmm.pid());
    let pid = daemon.process().pid();
    let cpu_seconds = cpu_clock::used(pid).as_secs_f64();
    let pages = (mib << 8) as f64;
    assert_eq!(vm.pages.current as f64, pages, "every page is known: {:?}", vm.pages);
    let resident = daemon::resident(pid);
    let point = Point {
        mib,
        seconds: vm.indexed.elapsed_ms as f64 / 1e3,
        cpu_seconds,
        bytes_per_page: resident / pages,
        more_bytes_per_page: (resident - alone) / pages,
    };
    eprintln!("  {mib} MiB: {:.2} s, {:.1} bytes a page", point.seconds, point.bytes_per_page);
    point
}
