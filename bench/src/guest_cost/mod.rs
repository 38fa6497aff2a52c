//! What a guest pays for being watched: faults, arming, scans, attaching, huge pages, and what is left of a busy writer's speed.
//!
//! Owns the measuring, through the daemon's own witnesses and through a daemon. Times are of the writer's processor, so that others on the machine do not count.

mod huge;
mod throughput;
mod witness;
mod writer;

use std::{
    fs,
    time::{Duration, Instant},
};

use indexer::{
    units::Hva,
    watch::ebpf::{HookOptions, Hooks},
};
use memdex_tests::{Scratch, Tiny, tiny};

use self::{
    witness::Witness,
    writer::{Ram, Writer},
};
pub(crate) use writer::{Arguments as WriterArguments, run as run_writer};

use crate::figure::{Bound, Figures, median};

/// All of its figures.
pub(crate) const NAMES: [&str; 14] = [
    "guest_cost_fault_ns",
    "guest_cost_fault_ebpf_ns",
    "guest_cost_kvm_fault_ns",
    "guest_cost_kvm_first_write_ratio",
    "guest_cost_scan_us_per_gib",
    "guest_cost_scan_loss_percent",
    "guest_cost_arm_run_us",
    "guest_cost_arm_run_guest_ns",
    "guest_cost_attach_us",
    "guest_cost_huge_cold_kept_percent",
    "guest_cost_huge_file_kept_percent",
    "guest_cost_busy_loss_percent",
    "guest_cost_busy_faults_percent",
    "guest_cost_estimate_ratio",
];
const MIB: usize = 256;
/// Pages written in each round.
const WRITES: usize = 16_384;
const ROUNDS: usize = 9;
const BUSY: Duration = Duration::from_millis(400);
/// Pages a busy writer goes round in; those beyond are never written by it.
const HOT: usize = 4096;

pub(crate) fn measure(figures: &mut Figures) {
    let scratch = Scratch::new("bench-cost");
    let fault_ns = faults(figures, &scratch);
    guest_faults(figures, &scratch);
    scans_and_arming(figures, &scratch);
    attaching(figures, &scratch);
    huge::measure(figures, &scratch);
    throughput::measure(figures, &scratch, fault_ns);
}

fn watch(writer: &Writer) -> Witness {
    Witness::attach(writer.pid(), writer.start, writer.pages)
}

/// The first write to an armed page over one to a page that is writable: without eBPF, with it. Returns the latter.
fn faults(figures: &mut Figures, scratch: &Scratch) -> f64 {
    eprintln!("first writes to {WRITES} pages of a process, {ROUNDS} rounds");
    let mut writer = Writer::start(scratch, Ram::Memfd, MIB);
    writer.once(0, WRITES, 1);
    let off = median((0..ROUNDS).map(|_| writer.once(0, WRITES, 1)).collect());
    let witness = watch(&writer);
    let mut armed = || {
        let round = |_| {
            witness.arm(0..WRITES);
            writer.once(0, WRITES, 1)
        };
        median((0..ROUNDS).map(round).collect())
    };
    let plain = armed();
    let hooks = Hooks::load(&HookOptions::default());
    let mut marks = witness.track(&hooks);
    let marked = armed();
    let (mut runs, mut discarded) = (Vec::new(), Vec::new());
    let taken = marks.take(&mut runs, &mut discarded);
    assert!(!taken.overflowed, "eBPF could not tell which page was written");
    let pages: usize = runs.iter().map(ExactSizeIterator::len).sum();
    assert_eq!(pages, WRITES, "eBPF has marked other pages than were written");
    let how = |what: &str, now: f64| {
        format!(
            "a write takes {off:.1} ns unwatched, {now:.0} to an armed page{what}, one page after the other"
        )
    };
    figures.add("guest_cost_fault_ns", plain - off, "ns", Bound::AtMost(4000.0), how("", plain));
    let text = how(" with eBPF", marked);
    figures.add("guest_cost_fault_ebpf_ns", marked - off, "ns", Bound::AtMost(5000.0), text);
    marked - off
}

/// The same for a guest of KVM. It writes three words in each page.
fn guest_faults(figures: &mut Figures, scratch: &Scratch) {
    const PAGES: u64 = 8000;
    eprintln!("first writes to {PAGES} pages of a KVM guest");
    let options = tiny::Options { mib: 64, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(scratch, &scratch.name("c"), &options);
    let layout = guest.run("layout");
    let address = layout.split_ascii_whitespace().nth(4).expect("slot ID PAGE PAGES ADDRESS");
    let address = address.parse().expect("an address");
    let pid = guest.pid();
    let mut write = |seed: u32| {
        let before = processor_of(pid);
        guest.write(1, PAGES, seed);
        (processor_of(pid) - before) / PAGES as f64
    };
    write(0);
    let off = median((0..ROUNDS as u32).map(&mut write).collect());
    let hooks = Hooks::load(&HookOptions::default());
    let witness = Witness::attach(pid, Hva(address), 64 << 8);
    let _marks = witness.track(&hooks);
    let round = |seed| {
        witness.arm(0..PAGES as usize + 1);
        write(seed)
    };
    let on = median((10..10 + ROUNDS as u32).map(round).collect());
    let how =
        format!("a page takes {off:.0} ns unwatched, {on:.0} armed and with eBPF, all of it in the guest");
    figures.add("guest_cost_kvm_fault_ns", on - off, "ns", Bound::AtMost(20_000.0), how.clone());
    figures.add("guest_cost_kvm_first_write_ratio", on / off, "", Bound::AtMost(20.0), how);
}

/// Nanoseconds of processors that all threads of a process have had, to the nanosecond.
fn processor_of(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let times = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<f64>().ok()
    });
    times.sum()
}

/// What looking costs, who is looked at as well; and arming memory that is not being written.
fn scans_and_arming(figures: &mut Figures, scratch: &Scratch) {
    eprintln!("scans and arm runs beside a busy writer");
    let mut writer = Writer::start(scratch, Ram::Memfd, MIB);
    let witness = watch(&writer);
    witness.arm(0..writer.pages);
    writer.once(0, 200, 301);
    let scan = median((0..ROUNDS).map(|_| witness.scan().0.as_secs_f64() * 1e6).collect());
    let per_gib = scan * 1024.0 / MIB as f64;
    let how = format!("read-only, of {MIB} MiB with 200 written pages; it changes nothing in the page table");
    figures.add("guest_cost_scan_us_per_gib", per_gib, "µs", Bound::AtMost(20_000.0), how);

    writer.busy(BUSY, 0, HOT);
    let (mut scan_loss, mut arm_loss, mut arm_guest, mut arm_daemon) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let alone = writer.busy(BUSY, 0, HOT);
        let (loss, scans, _) = beside(&mut writer, alone, || {
            witness.scan();
        });
        scan_loss.push(loss * 100.0);
        assert!(scans > 0, "no scan fits into the time");
        let alone = writer.busy(BUSY, 0, HOT);
        let mut page = HOT;
        let (loss, runs, took) = beside(&mut writer, alone, || {
            page = if page + 2 < MIB << 8 { page + 2 } else { HOT };
            witness.arm(page..page + 1);
        });
        arm_loss.push(loss * 100.0);
        arm_guest.push(loss * BUSY.as_nanos() as f64 / runs as f64);
        arm_daemon.push(took.as_secs_f64() * 1e6 / runs as f64);
    }
    let how = "of a writer's speed while scans follow each other without a pause".to_owned();
    figures.add("guest_cost_scan_loss_percent", median(scan_loss), "%", Bound::AtMost(10.0), how);
    let how = "one page in a call, the daemon's time".to_owned();
    figures.add("guest_cost_arm_run_us", median(arm_daemon), "µs", Bound::AtMost(20.0), how);
    let how = format!(
        "taken from a writer on another processor; without a pause between the calls it loses {:.1} %",
        median(arm_loss)
    );
    figures.add("guest_cost_arm_run_guest_ns", median(arm_guest), "ns", Bound::AtMost(5000.0), how);
}

/// Does something again and again beside a busy writer: what share of its speed that takes, how often it was done, and how long it took in all.
fn beside(writer: &mut Writer, alone: f64, mut work: impl FnMut()) -> (f64, u64, Duration) {
    writer.tell(&format!("busy {} 0 {HOT}", BUSY.as_millis()));
    let began = Instant::now();
    let mut times = 0;
    while began.elapsed() < BUSY {
        work();
        times += 1;
    }
    let took = began.elapsed();
    (1.0 - writer.rate() / alone, times, took)
}

fn attaching(figures: &mut Figures, scratch: &Scratch) {
    let stop = |_| watch(&Writer::start(scratch, Ram::Memfd, 16)).stopped().as_secs_f64() * 1e6;
    let times: Vec<f64> = (0..5).map(stop).collect();
    let longest = times.iter().copied().fold(0.0, f64::max);
    let how = format!("one thread is stopped once for one system call; the longest of five {longest:.0} µs");
    figures.add("guest_cost_attach_us", median(times), "µs", Bound::AtMost(1000.0), how);
}
