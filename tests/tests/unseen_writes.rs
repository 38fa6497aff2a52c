//! Protects what the map shows between two audits: system calls after which memory is written without any fault that a hook could see, or is other memory than before.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use memdex_tests::{Daemon, PAGE, Scratch, Tiny, contract::Vm, oracle, tiny, wait};

const APPEAR: Duration = Duration::from_secs(5);
/// For so long the map is looked at: well before an audit, which comes every ten seconds.
const BEFORE_AN_AUDIT: Duration = Duration::from_secs(2);
/// So long after it was read a page is looked at only if a hook says so.
const NO_LONGER_NEW: Duration = Duration::from_secs(4);

/// A guest whose memory is all known, so that every page of it is armed.
fn known(scratch: &Scratch, ram: tiny::Ram) -> (Tiny, Daemon, Vm) {
    let options = tiny::Options { ram, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(scratch, &scratch.name("g"), &options);
    guest.write(1, 1000, 1);
    // The guest's own program has the first page.
    let daemon = Daemon::start(scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("before");
    // What was read lately is looked at all the time, whatever the hooks say.
    wait::pause(NO_LONGER_NEW);
    (guest, daemon, vm)
}

/// What the map says is right, now and as time goes by; and known in the end.
fn expect_right(daemon: &Daemon, vm: &Vm) {
    let until = std::time::Instant::now() + BEFORE_AN_AUDIT;
    while std::time::Instant::now() < until {
        wait::pause(Duration::from_millis(150));
        oracle::compare_claims(daemon, vm).expect_exact("without a sync");
    }
    daemon.sync(&vm.id);
    oracle::compare(daemon, vm).expect_exact("after a sync");
}

#[test]
fn memory_that_was_populated_for_writing() {
    let scratch = Scratch::new("populated");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Memfd);
    // virtio-mem with prealloc=on does so; the device then writes pages that are there already.
    guest.run("madvise 0 2000 50 populate");
    wait::pause(Duration::from_millis(300));
    guest.run("poke 2000 50 7");
    expect_right(&daemon, &vm);
}

#[test]
fn memory_that_was_locked() {
    let scratch = Scratch::new("locked");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Anonymous);
    guest.run("mlock 0 200 50");
    wait::pause(Duration::from_millis(300));
    guest.run("poke 200 50 7");
    guest.run("mlock 0 2000 50");
    wait::pause(Duration::from_millis(300));
    guest.run("poke 2000 50 7");
    expect_right(&daemon, &vm);
}

#[test]
fn other_memory_in_the_middle_of_a_region() {
    let scratch = Scratch::new("middle");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Anonymous);
    guest.run("replace 0 400 50");
    wait::pause(Duration::from_millis(300));
    oracle::compare_claims(&daemon, &vm).expect_exact("replaced");
    guest.run("poke 420 10 7");
    expect_right(&daemon, &vm);
}

/// Neither a thread of the VMM nor an exception of the processor's: no hook sees it. The page table does, and that it was only that one is counted.
#[test]
fn what_only_the_page_table_shows_is_found_and_counted() {
    const WRITTEN: u64 = 10;
    let scratch = Scratch::new("counted");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Memfd);
    let before = daemon.vm_of(guest.pid()).expect("it runs");
    let layout = guest.run("layout");
    let start = layout.split([' ', ';']).nth(4).expect("the address of slot 0");
    let start =
        start.strip_prefix("0x").map_or_else(|| start.parse(), |digits| u64::from_str_radix(digits, 16));
    let start = start.unwrap_or_else(|error| panic!("{error}: {layout}"));
    let memory = OpenOptions::new().write(true).open(format!("/proc/{}/mem", guest.pid())).expect("root may");
    for page in 300..300 + WRITTEN {
        memory.write_all_at(&page.to_le_bytes(), start + page * PAGE + 64).expect("it is guest memory");
    }
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("after a sync");
    let after = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!(after.missed_by_ebpf - before.missed_by_ebpf, WRITTEN, "{after:?}");
    assert_eq!((&*after.tracking, after.mismatches), ("exact", 0), "a write without a mark is no wrong page");
}

/// Memory that cannot be read is said to be so, region by region, and is right again once it can.
#[test]
fn memory_that_cannot_be_read() {
    let scratch = Scratch::new("unreadable");
    let path = scratch.shm("ram");
    let (guest, daemon, vm) = known(&scratch, tiny::Ram::File(path.clone()));
    let file = OpenOptions::new().write(true).open(&path).expect("the RAM file");
    let whole = file.metadata().expect("it is there").len();
    file.set_len(whole / 2).expect("it can be cut");
    let region = |wanted: &str| {
        wait::until(&format!("the region to be {wanted}"), Duration::from_secs(20), || {
            let vm = daemon.vm_of(guest.pid())?;
            let regions = vm.coverage.iter();
            let mut found = regions.filter(|region| region.status == wanted && region.pages > 1);
            found.next().cloned().map(|region| (vm.tracking.clone(), region))
        })
        .0
    };
    let (tracking, cut) = region("unreadable");
    assert_eq!(tracking, "advisory");
    assert!(cut.reason.as_ref().is_some_and(|reason| !reason.is_empty()), "{cut:?}");
    let claims = daemon.pages(&vm.id);
    let cut = claims.iter().filter(|page| page.page >= whole / PAGE / 2);
    assert!(cut.clone().count() > 0 && cut.clone().all(|page| page.fingerprint.is_none()), "{cut:?}");
    file.set_len(whole).expect("it can be as long as it was");
    let (tracking, region) = region("exact");
    assert_eq!((&*tracking, &region.reason), ("exact", &None));
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("when it could be read again");
}

/// A file in the folder where the kernel has its VFIO devices; a VMM that holds one is taken for one that has passed a device through.
struct Device(PathBuf);

impl Device {
    const FOLDER: &str = "/dev/vfio";

    fn new() -> Self {
        let _ = fs::create_dir(Self::FOLDER);
        let path = Path::new(Self::FOLDER).join(format!("memdex-test-{}", std::process::id()));
        fs::write(&path, vec![0; 4096]).expect("root may make files in /dev");
        Self(path)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        // Only if it is empty, as it is where there are no such devices.
        let _ = fs::remove_dir(Self::FOLDER);
    }
}

#[test]
fn a_device_that_writes_by_dma_makes_a_vm_advisory_for_as_long_as_it_is_there() {
    let scratch = Scratch::new("dma");
    let (mut guest, daemon, vm) = known(&scratch, tiny::Ram::Memfd);
    let pid = guest.pid();
    let until = |wanted: &str| {
        wait::until(&format!("the VM to be {wanted}"), Duration::from_secs(12), || {
            daemon.vm_of(pid).filter(|vm| vm.tracking == wanted)
        })
        .0
    };
    until("exact");
    let device = Device::new();
    guest.run(&format!("uring open {}", device.0.display()));
    let held = until("advisory");
    assert!(held.advisory_reasons.iter().any(|reason| reason.contains("by DMA")), "{held:?}");
    assert!(
        held.coverage.iter().all(|region| region.status == "advisory" && region.reason.is_some()),
        "{held:?}"
    );
    guest.run("uring close");
    until("exact");
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("without the device");
}
