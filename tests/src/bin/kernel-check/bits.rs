//! Soft-dirty bits as the witness: on a kernel that has nothing better, a map has to be right by itself whatever writes, discards, maps anew,
//! migrates pages or clears bits while a daemon looks on.
//!
//! Owns the guests of these checks; what is compared is the oracle's, page by page, with the guest paused and nobody asking for a sync.

use std::{fs, os::unix::fs::FileExt as _, time::Duration};

use memdex_tests::{Daemon, Scratch, Tiny, contract::Vm, daemon, oracle, tiny, wait};

use crate::reporter::Reporter;

const APPEAR: Duration = Duration::from_secs(5);
/// Time for the last writes to be seen without a sync.
const SEEN: Duration = Duration::from_millis(60);
/// Time for everything to become known by itself: a round, and a page whose write has left no bit.
const KNOWN: Duration = Duration::from_secs(10);
const ROUNDS: u64 = 4;
/// The module `brd`'s.
const DISK: &str = "/dev/ram0";
const DISK_PAGES: usize = 16;
const HUGE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub(crate) fn check(reporter: &mut Reporter) {
    reporter.check("soft-dirty: every way to write shared memory", || {
        Host::start("bits-m", tiny::Ram::Memfd).every_way(Way::Shared)
    });
    reporter.check("soft-dirty: while pages are migrated and others clear bits", || {
        let scratch = Scratch::new("shm");
        let ram = tiny::Ram::File(scratch.shm("ram"));
        Host::start("bits-s", ram).disturbed()
    });
    reporter.check("soft-dirty: direct I/O into shared memory", || {
        let settle = ["--settle-seconds", "1"].map(str::to_owned).to_vec();
        Host::start_with("bits-d", tiny::Ram::Memfd, settle).direct_io()
    });
    reporter.check("soft-dirty: anonymous memory that may have huge pages is not called exact", || {
        huge_pages("always")?;
        let mut host = Host::start("bits-h", tiny::Ram::Anonymous);
        let vm = host.vm();
        host.guest.kill();
        huge_pages("never")?;
        let says_why = vm.advisory_reasons.iter().any(|reason| reason.contains("huge pages"));
        let seen = format!("{}: {:?}", vm.tracking, vm.advisory_reasons);
        if vm.tracking == "advisory" && says_why { Ok(seen) } else { Err(seen) }
    });
    reporter.check("soft-dirty: every way to write anonymous memory, and to map it anew", || {
        Host::start("bits-a", tiny::Ram::Anonymous).every_way(Way::Anonymous)
    });
}

fn huge_pages(setting: &str) -> Result<(), String> {
    fs::write(HUGE, setting).map_err(|error| format!("{HUGE}: {error}"))
}

/// Pages of the host that have been migrated since it was booted.
fn migrated() -> Result<u64, String> {
    let text = fs::read_to_string("/proc/vmstat").map_err(|error| error.to_string())?;
    let value = text.lines().find_map(|line| line.strip_prefix("pgmigrate_success ")?.parse().ok());
    value.ok_or_else(|| "/proc/vmstat counts no migrations".to_owned())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Shared,
    Anonymous,
}

/// A host with one guest; the scratch space is dropped last.
struct Host {
    guest: Tiny,
    daemon: Daemon,
    vm: Vm,
    compared: u64,
    _scratch: Scratch,
}

impl Host {
    fn start(name: &str, ram: tiny::Ram) -> Self {
        Self::start_with(name, ram, Vec::new())
    }

    fn start_with(name: &str, ram: tiny::Ram, arguments: Vec<String>) -> Self {
        let scratch = Scratch::new("bits");
        let options = tiny::Options { mib: 8, ram, ..tiny::Options::default() };
        let mut guest = Tiny::start_with(&scratch, &scratch.name(name), &options);
        guest.write(1, 1000, 1);
        let options = daemon::Options { arguments, ..daemon::Options::default() };
        let daemon = Daemon::start_with(&scratch, "memdexd", &options);
        let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
        daemon.sync(&vm.id);
        Self { guest, daemon, vm, compared: 0, _scratch: scratch }
    }

    fn vm(&self) -> Vm {
        self.daemon.vm_of(self.guest.pid()).unwrap_or_else(|| self.vm.clone())
    }

    /// All that a guest, its VMM and the kernel do, half of the time with the guest running on.
    fn every_way(mut self, way: Way) -> Result<String, String> {
        self.exact()?;
        self.guest.run("loop 3000 1 1500");
        self.guest.run("pause");
        for round in 0..ROUNDS {
            let first = 1 + round * 97;
            self.guest.write(first, 200, round as u32 * 1000);
            self.guest.run(&format!("poke {} 7 {round}", first + 50));
            self.guest.run(&format!("fill {} 3", first + 120));
            self.guest.run(&format!("zero {} 20", first + 150));
            self.write_from_outside(first + 180, round)?;
            match (round % 4, way) {
                // All of it becomes zero, and the guest's program with it: the VMM goes on writing.
                (_, Way::Anonymous) if round + 1 == ROUNDS => drop(self.guest.run("remap 0")),
                (0, _) => drop(self.guest.run(&format!("madvise 0 {} 5 dontneed", first + 10))),
                (1, Way::Shared) => drop(self.guest.run(&format!("punch 0 {} 9", first + 60))),
                (2, Way::Shared) => drop(self.guest.run(&format!("madvise 0 {} 4 remove", first + 90))),
                _ => {}
            }
            self.claims(&format!("round {round}"));
            if round % 2 == 1 && round + 1 < ROUNDS {
                self.guest.run("resume");
                std::thread::sleep(Duration::from_millis(150));
                self.guest.run("pause");
                self.claims(&format!("round {round}, after running on"));
            }
            if round % 4 == 2 {
                self.known(&format!("round {round}, when all is known"));
            }
        }
        if way == Way::Anonymous {
            self.guest.run("poke 100 50 9");
        }
        self.end()
    }

    /// A disk is read into pages that are armed and into some that have just been written.
    fn direct_io(mut self) -> Result<String, String> {
        self.exact()?;
        for round in 0..ROUNDS {
            let content: Vec<u8> =
                (0..DISK_PAGES * 4096).map(|i| (i as u64 * 31 + round * 7 + i as u64 / 4096) as u8).collect();
            fs::write(DISK, content).map_err(|error| format!("{DISK}: {error}"))?;
            self.guest.run(&format!("disk open {DISK}"));
            let first = 100 + round * 150;
            self.guest.write(first, 5, round as u32 * 1000);
            self.guest.run(&format!("disk pread {first} {DISK_PAGES}"));
            self.guest.run(&format!("disk aio {} {DISK_PAGES}", first + 40));
            self.guest.run("disk wait");
            self.claims(&format!("direct I/O, round {round}"));
            if round % 3 == 2 {
                self.known(&format!("direct I/O, round {round}, settled"));
            }
            self.guest.run("disk close");
        }
        self.end()
    }

    /// The same while memory is compacted and somebody else clears bits.
    fn disturbed(mut self) -> Result<String, String> {
        self.exact()?;
        let pid = self.guest.pid();
        let before = migrated()?;
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stop = std::sync::Arc::clone(&done);
        let others = std::thread::spawn(move || {
            let (mut compacted, mut cleared) = (0, 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                compacted += u32::from(fs::write("/proc/sys/vm/compact_memory", "1").is_ok());
                std::thread::sleep(Duration::from_millis(30));
                cleared += u32::from(fs::write(format!("/proc/{pid}/clear_refs"), "4").is_ok());
                std::thread::sleep(Duration::from_millis(50));
            }
            (compacted, cleared)
        });
        self.guest.run("loop 3000 1 1500");
        for round in 0..ROUNDS {
            std::thread::sleep(Duration::from_millis(200));
            self.guest.run("pause");
            self.guest.write(1 + round * 97, 300, round as u32 * 1000);
            self.write_from_outside(200 + round, round)?;
            self.claims(&format!("disturbed round {round}"));
            self.guest.run("resume");
        }
        self.guest.run("pause");
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let (compacted, cleared) = others.join().map_err(|_| "the disturber panicked")?;
        let noticed = self.metric("memdex_vm_cleared_by_others_total")?;
        let moved = migrated()? - before;
        let disturbed = format!(
            "bits cleared by others {cleared} times, memory compacted {compacted} times, {moved} pages of the host migrated"
        );
        if noticed == 0 || moved == 0 {
            return Err(format!("nothing was disturbed: {disturbed}, {noticed} clearings noticed"));
        }
        Ok(format!("{}; {disturbed}", self.end()?))
    }

    fn exact(&self) -> Result<(), String> {
        let vm = self.vm();
        if vm.tracking == "exact" { Ok(()) } else { Err(format!("{:?}", vm.advisory_reasons)) }
    }

    /// Through `/proc/PID/mem`: no exception of the processor's, and no thread of the VMM.
    fn write_from_outside(&mut self, page: u64, value: u64) -> Result<(), String> {
        let layout = self.guest.run("layout");
        let start = layout.split([' ', ';']).nth(4).and_then(|address| {
            let digits = address.trim_start_matches("0x");
            if digits.len() < address.len() {
                u64::from_str_radix(digits, 16).ok()
            } else {
                digits.parse().ok()
            }
        });
        let start = start.ok_or_else(|| format!("no address of slot 0 in {layout:?}"))?;
        let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", self.guest.pid()));
        let written =
            memory.and_then(|memory| memory.write_all_at(&value.to_le_bytes(), start + page * 4096 + 64));
        written.map_err(|error| format!("/proc/PID/mem: {error}"))
    }

    /// What the map says by itself, a few ticks after the last write.
    fn claims(&mut self, context: &str) {
        wait::pause(SEEN);
        let report = oracle::compare_claims(&self.daemon, &self.vm);
        report.expect_exact(context);
        self.compared += report.checked;
    }

    /// Everything becomes known by itself, and is right all the while. A page may turn stale meanwhile: the last write
    /// may have left a mark that nobody has read yet.
    fn known(&mut self, context: &str) {
        wait::pause(SEEN);
        let (report, _) = wait::until("every page to be known", KNOWN, || {
            let report = oracle::compare_claims(&self.daemon, &self.vm);
            report.expect_exact(context);
            let [_, _, _, stale] = report.states;
            (stale == 0).then_some(report)
        });
        self.compared += report.checked;
    }

    fn end(mut self) -> Result<String, String> {
        self.known("in the end");
        self.daemon.sync(&self.vm.id);
        let report = oracle::compare(&self.daemon, &self.vm);
        report.expect_exact("after a sync");
        self.daemon.verify(&self.vm.id);
        let vm = self.vm();
        let rounds = self.metric("memdex_vm_whole_armed_total")?;
        let took = self.metric("memdex_vm_whole_armed_microseconds_total")?;
        self.daemon.stop();
        self.guest.kill();
        if vm.mismatches > 0 || vm.tracking != "exact" {
            return Err(format!("{} mismatches, {} {:?}", vm.mismatches, vm.tracking, vm.advisory_reasons));
        }
        Ok(format!(
            "{} page checks, none differs; armed {rounds} times, {} ms in all; missed by eBPF: {}",
            self.compared + report.checked,
            took / 1000,
            vm.missed_by_ebpf
        ))
    }

    fn metric(&self, name: &str) -> Result<u64, String> {
        let answer = self.daemon.get("/metrics");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let value = text
            .lines()
            .filter(|line| line.starts_with(name))
            .find_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.map(|value| value as u64).ok_or_else(|| format!("no metric {name}"))
    }
}
