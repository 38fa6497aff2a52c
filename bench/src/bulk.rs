//! How many written pages a second the daemon keeps up with, for each core that it takes: a VM whose memory is written over and over in bulk.
//!
//! The budget of the guest is not what is asked for here, so there is none; the daemon's own time is all that counts, that of the kernel for it included.

use std::{thread, time::Duration};

use memdex_tests::Scratch;

use crate::{
    cpu_clock,
    daemon::{self, metric, settled},
    figure::{Bound, Figures, median},
    vmm::Vmm,
};

pub(crate) const NAME: &str = "pages_per_core_second";

const MIB: usize = 2048;
const PAGES: usize = MIB << 8;
const ROUNDS: usize = 5;
/// Longer than pages count as hot.
const REST: Duration = Duration::from_secs(3);

pub(crate) fn measure(figures: &mut Figures) {
    eprintln!("all pages of {MIB} MiB written over, {ROUNDS} rounds");
    let scratch = Scratch::new("bench-bulk");
    let mut vmm = Vmm::start(&scratch, "vmm", MIB, 0, 1);
    let no_budget = ["--guest-budget", "100"].map(str::to_owned);
    let mut daemon = daemon::start_with(&scratch, "daemon", &format!("*-{}", vmm.pid()), &no_budget);
    daemon::indexed(&daemon, vmm.pid());
    let pid = daemon.process().pid();
    let (mut rates, mut times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        thread::sleep(REST);
        let before = (metric(&daemon, "memdex_vm_pages_read_total"), cpu_clock::used(pid).as_secs_f64());
        vmm.write_at_once(0, PAGES);
        // The last marks are taken with the next tick.
        thread::sleep(Duration::from_millis(200));
        settled(&daemon, vmm.pid(), Duration::from_secs(60));
        let taken = cpu_clock::used(pid).as_secs_f64() - before.1;
        let read = metric(&daemon, "memdex_vm_pages_read_total") - before.0;
        assert!(read >= PAGES as f64, "{read} pages of {PAGES} were read again");
        rates.push(read / taken);
        times.push(taken);
    }
    let how = format!(
        "{PAGES} pages with new content a round, one after the other; {:.2} s of the daemon's CPU time a round, by {} hashing thread and the tracker",
        median(times),
        daemon::HASH_THREADS
    );
    figures.add(NAME, median(rates), "pages/s", Bound::AtLeast(250_000.0), how);
}
