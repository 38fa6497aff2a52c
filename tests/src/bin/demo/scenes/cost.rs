//! What it costs, and who saw the writes.

use std::time::{Duration, Instant};

use crate::{
    figures::{count, percent, size, time},
    hosts::{Host, World},
    metrics::Metrics,
    stage::{Failure, Stage},
    summary::Summary,
};

pub(super) fn play(world: &World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    stage.scene("What does it cost?")?;
    let length = Duration::from_secs(if world.fast { 3 } else { 6 });
    stage.say(&format!(
        "Measured for {} s while the guests write and nobody asks anything:",
        length.as_secs()
    ));
    let before: Vec<Metrics> = world.hosts.iter().map(Host::metrics).collect();
    let begun = Instant::now();
    stage.pause(length)?;
    let seconds = begun.elapsed().as_secs_f64();
    for (host, before) in world.hosts.iter().zip(&before) {
        daemon(host, before, &host.metrics(), seconds, stage, summary)?;
    }
    stage.line("");
    witnesses(world, stage, summary)
}

/// Processor time and memory of a daemon.
fn daemon(
    host: &Host,
    before: &Metrics,
    after: &Metrics,
    seconds: f64,
    stage: &mut Stage,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let grown = |name: &str| after.sum(name, "") - before.sum(name, "");
    let core = grown("memdex_process_cpu_seconds_total") / seconds * 100.0;
    let programs = grown("memdex_ebpf_seconds_total") / seconds * 100.0;
    let written = grown("memdex_vm_pages_gone_stale_total") / seconds;
    let resident = after.sum("memdex_process_resident_bytes", "");
    let pages: u64 = host.vms()?.iter().map(|vm| vm.pages.total).sum();
    stage.line(&format!(
        "{}   {core:.1} % of one core, eBPF {programs:.2} %   for {written:.0} pages written a second",
        host.name
    ));
    stage.line(&format!(
        "        {} of memory for {} guest pages: {:.0} bytes a page, the daemon itself included",
        size(resident as u64),
        count(pages),
        resident / pages as f64
    ));
    summary.figure(host.name, "cpu", core, "% of a core");
    summary.figure(host.name, "ebpf_cpu", programs, "% of a core");
    summary.figure(host.name, "written", written, "pages/s");
    summary.figure(host.name, "resident", resident, "bytes");
    summary.figure(host.name, "resident_per_page", resident / pages as f64, "bytes");
    Ok(())
}

/// The two witnesses of writes, held against each other.
fn witnesses(world: &World, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    let (mut marks, mut missed, mut mismatches, mut runs, mut seconds) = (0.0, 0, 0, 0.0, 0.0);
    let mut active: Vec<String> = Vec::new();
    for host in &world.hosts {
        let metrics = host.metrics();
        marks += metrics.sum("memdex_vm_marks_written_total", "")
            + metrics.sum("memdex_vm_marks_discarded_total", "");
        runs += metrics.sum("memdex_ebpf_runs_total", "");
        seconds += metrics.sum("memdex_ebpf_seconds_total", "");
        for vm in host.vms()? {
            missed += vm.missed_by_ebpf;
            mismatches += vm.mismatches;
            let names = vm.witnesses.into_iter().filter(|witness| witness.status == "active").map(|w| w.name);
            active.extend(names);
        }
    }
    active.sort_unstable();
    active.dedup();
    let hooks: Vec<&str> = active.iter().filter_map(|name| name.strip_prefix("ebpf:")).collect();
    stage.say(&format!(
        "Two witnesses watch for writes: the host's page tables, which are the truth, and eBPF programs in the kernel, which \
         say so at once ({}).",
        if hooks.is_empty() { "none could be attached here".to_owned() } else { hooks.join(", ") }
    ));
    let total = marks as u64 + missed;
    stage.line(&format!(
        "eBPF marked {} pages; {} more ({}) only the page tables showed",
        count(marks as u64),
        count(missed),
        percent(missed, total.max(1)),
    ));
    if runs > 0.0 && seconds > 0.0 {
        stage.line(&format!(
            "its programs ran {} times, {} each",
            count(runs as u64),
            nanoseconds(Duration::from_secs_f64(seconds / runs))
        ));
        summary.figure("both", "ebpf_run", seconds / runs * 1e9, "ns");
    }
    summary.figure("both", "ebpf_marks", marks, "pages");
    summary.figure("both", "missed_by_ebpf", missed, "pages");
    let text = format!("pages that memdex itself found to differ from its map, so far: {mismatches}");
    summary.check(stage, "no_mismatch", mismatches == 0, &text);
    Ok(())
}

fn nanoseconds(duration: Duration) -> String {
    if duration < Duration::from_micros(10) { format!("{} ns", duration.as_nanos()) } else { time(duration) }
}
