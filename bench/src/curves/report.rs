//! The curves as tables, for people. Owns the words; the plot is in [`super::chart`].

use std::{fmt::Write as _, fs, io, path::Path};

use super::{Curves, peers, rate};
use crate::{daemon::HASH_THREADS, machine};

/// Writes `curves.md` into a folder.
pub(super) fn write(folder: &Path, curves: &Curves) -> io::Result<()> {
    let text = format!(
        "# Cost curves, measured

`cargo xtask bench --only curves --docs docs` writes this page and the plot anew, in some minutes.

![Six curves: first index and memory over the size of a VM, freshness and CPU time over the pages written a second, diffs and memory over the number of peers](curves.svg)

Taken once on {} with {HASH_THREADS} hashing thread; {}. They show how costs grow; what is promised, and held against a baseline of the same run, is in SPECIFICATION.md.

{}",
        machine::model(),
        if curves.busy {
            "**something else kept the machine busy: times are too long, and how they grow is all that they say**"
        } else {
            "nothing else kept the machine busy"
        },
        tables(curves)
    );
    fs::write(folder.join("curves.md"), text)
}

/// All of them.
pub(super) fn tables(curves: &Curves) -> String {
    [sizes(curves), rates(curves), peers(curves)].join("\n")
}

fn sizes(curves: &Curves) -> String {
    let mut text = "## Memory of a VM

A VM in which every page differs, in a memfd. *CPU time* is all that the daemon has taken until then, its own start included; *beyond its own* leaves out the memory of a daemon
that watches nothing.

| memory | first index | pages a second | CPU time | daemon, bytes a page | beyond its own |
|--:|--:|--:|--:|--:|--:|
"
    .to_owned();
    for point in &curves.sizes {
        let rate = (point.mib << 8) as f64 / point.seconds;
        let _ = writeln!(
            text,
            "| {} MiB | {:.2} s | {rate:.0} | {:.2} s | {:.1} | {:.1} |",
            point.mib, point.seconds, point.cpu_seconds, point.bytes_per_page, point.more_bytes_per_page
        );
    }
    text
}

fn rates(curves: &Curves) -> String {
    let mut text = format!(
        "## Pages written a second

Quiet pages of {} MiB, each written once, for {} s at each rate. *Freshness*: from a write until HTTP shows the new content, with somebody who looks every two milliseconds. *CPU time*: of the daemon, in a run
of its own in which nobody looks, from the first write until all is known again. *Behind*: after the last write, until all was known. The budget is what being watched may cost the
guest, of one vCPU: beyond it pages are *held*, stale and writable, until their turn comes. 100 % holds nothing back.

| budget | pages a second | p50 | p99 | CPU time, of a core | CPU time a page | behind | held |
|--:|--:|--:|--:|--:|--:|--:|--:|
",
        rate::MIB,
        rate::SECONDS
    );
    for point in &curves.rates {
        let rate::Point { budget, per_second, cpu_percent, cpu_us_per_page, behind_seconds, held, .. } =
            point;
        let _ = writeln!(
            text,
            "| {budget} % | {per_second} | {} | {} | {cpu_percent:.1} % | {cpu_us_per_page:.1} µs | {behind_seconds:.1} s | {held:.0} |",
            milliseconds(point.p50_ms),
            milliseconds(point.p99_ms)
        );
    }
    text
}

fn peers(curves: &Curves) -> String {
    let mut text = format!(
        "## Peers

A VM of {0} MiB here, one of {0} MiB at each peer, half of each the same. One daemon is followed under many names: each is a peer of its own, with a connection and a picture. Before each
round of diffs {1} pages of the VM here are written. *Asked*: the same diff by asking the peer, as it is for hosts that are not followed.

| peers | a known diff | the longest | asked | pictures | all that they take | CPU time at rest |
|--:|--:|--:|--:|--:|--:|--:|
",
        peers::MIB,
        peers::WRITTEN
    );
    for point in &curves.peers {
        let peers::Point { peers, known_ms, longest_ms, asked_ms, pictures_mib, more_mib, idle_percent } =
            point;
        let _ = writeln!(
            text,
            "| {peers} | {known_ms:.2} ms | {longest_ms:.2} ms | {asked_ms:.0} ms | {pictures_mib:.1} MiB | {more_mib:.1} MiB | {idle_percent:.1} % of a core |"
        );
    }
    text
}

fn milliseconds(value: f64) -> String {
    if value.is_finite() { format!("{value:.0} ms") } else { "not in time".to_owned() }
}
