//! Cost curves: what memdex costs as peers, writes and memory grow. One figure says little about the next larger host; these say how it goes on.
//!
//! - [`peers`]: diffs and their memory, over the number of peers. [`rate`]: freshness and the daemon's CPU time, over pages written a second. [`size`]: the first index,
//!   over memory.
//! - [`report`] and [`chart`]: how they are shown.

mod chart;
mod peers;
mod rate;
mod report;
mod size;

use std::{path::Path, thread, time::Duration};

use crate::machine::{cpus, idle};

pub(crate) const NAME: &str = "curves";

/// Which part of the machine has to be idle before anything begins, or it counts as busy.
const QUIET: f64 = 0.8;

/// All that was measured.
struct Curves {
    peers: Vec<peers::Point>,
    rates: Vec<rate::Point>,
    sizes: Vec<size::Point>,
    /// Something else kept this machine busy before one of them.
    busy: bool,
}

/// Measures all curves and prints them; writes them into a folder if there is one.
pub(crate) fn measure(folder: Option<&Path>) {
    let mut busy = false;
    let curves = {
        let mut quietly = || busy |= is_busy();
        quietly();
        let sizes = size::measure();
        quietly();
        let peers = peers::measure();
        quietly();
        let rates = rate::measure();
        quietly();
        Curves { peers, rates, sizes, busy }
    };
    print!("{}", report::tables(&curves));
    if let Some(folder) = folder {
        report::write(folder, &curves).expect("the tables can be written");
        chart::write(folder, &curves).expect("the plot can be written");
    }
}

fn is_busy() -> bool {
    let before = idle();
    thread::sleep(Duration::from_secs(1));
    idle() - before < cpus() * QUIET
}
