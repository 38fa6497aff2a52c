//! Protects the promise of `current` for VMs whose disks are opened for direct I/O: what a disk writes late, into a page that was read meanwhile, is
//! never hidden behind a wrong fingerprint. The disk is one that answers when the test says so.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, PAGE, Scratch, SlowDisk, Tiny,
    contract::{Page, State, Vm},
    daemon, oracle, wait,
};

const APPEAR: Duration = Duration::from_secs(5);
const BOUND: Duration = Duration::from_secs(20);
/// A guest page that the disk reads into, and its neighbours.
const FIRST: u64 = 100;
const COUNT: u64 = 8;
/// Bit of an entry of /proc/PID/pagemap: write-protected by userfaultfd.
const UFFD_WP: u64 = 1 << 57;
const SETTLE: Duration = Duration::from_secs(2);

struct Stand {
    daemon: Daemon,
    disk: SlowDisk,
    guest: Tiny,
    vm: Vm,
}

impl Stand {
    fn new(scratch: &Scratch, settle: &str) -> Self {
        let mut guest = Tiny::start(scratch, &scratch.name("d"));
        guest.write(1, 1000, 1);
        let options = daemon::Options {
            // The background audit reads pages again too, and would find what settling is here to keep from happening.
            arguments: ["--settle-seconds", settle, "--audit-percent", "0"].map(str::to_owned).to_vec(),
            ..daemon::Options::default()
        };
        let daemon = Daemon::start_with(scratch, "memdexd", &options);
        let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
        daemon.sync(&vm.id);
        assert_eq!(daemon.vm_of(guest.pid()).expect("it runs").pages.stale, 0, "there is no direct I/O yet");
        let disk = SlowDisk::mount(scratch, "disk");
        Self { daemon, disk, guest, vm }
    }

    fn open(&mut self) {
        self.guest.run(&format!("disk open {}", self.disk.file().display()));
    }

    fn wait_until_noticed(&self) {
        wait::until("the daemon to see the direct I/O", APPEAR, || self.now().direct_io);
    }

    fn now(&self) -> Vm {
        self.daemon.vm_of(self.vm.pid).expect("it runs")
    }

    /// Submits a read that is not answered.
    fn submit(&mut self, how: &str) {
        self.disk.hold();
        self.guest.run(&format!("disk {how} {FIRST} {COUNT}"));
        self.disk.wait_for_reads(1);
    }

    /// Lets the disk answer, and the bytes arrive.
    fn answer(&mut self) {
        self.disk.release();
        assert_eq!(self.guest.run("disk wait"), (COUNT * PAGE).to_string());
    }

    fn pages(&self) -> Vec<Page> {
        let mut pages = self.daemon.pages(&self.vm.id);
        pages.drain(..FIRST as usize);
        pages.truncate(COUNT as usize);
        pages
    }

    /// Whether the page table shows all of the pages as write-protected.
    fn armed(&mut self) -> bool {
        let layout = self.guest.run("layout");
        let slot: Vec<u64> = layout.split(' ').filter_map(|word| word.parse().ok()).collect();
        let page = slot[3] / PAGE + FIRST;
        let pagemap = File::open(format!("/proc/{}/pagemap", self.guest.pid())).expect("it runs");
        let mut entries = [0; COUNT as usize * 8];
        pagemap.read_exact_at(&mut entries, page * 8).expect("the guest's RAM is mapped");
        entries.as_chunks::<8>().0.iter().all(|entry| u64::from_le_bytes(*entry) & UFFD_WP != 0)
    }

    /// Waits until the pages have been armed and read: from then on nothing in the page table tells of what arrives.
    fn wait_until_armed_and_read(&mut self, state: State, content: &[String]) {
        wait::until("the pages to be armed", BOUND, || self.armed().then_some(()));
        self.wait_until_read(state, |page| content[page as usize].clone());
    }

    fn wait_until_read(&self, state: State, content: impl Fn(u64) -> String) {
        wait::until("the pages to have been read", BOUND, || {
            let read = |(i, page): (usize, &Page)| {
                page.state == state && page.fingerprint.as_deref() == Some(&content(i as u64))
            };
            (self.pages().iter().enumerate().all(read) && self.stale_but_unsettled() == 0).then_some(())
        });
    }

    fn stale_but_unsettled(&self) -> u64 {
        let pages = self.now().pages;
        pages.stale - pages.unsettled
    }

    fn late(&self) -> u64 {
        let metrics = String::from_utf8(self.daemon.get("/metrics").body).expect("text");
        let line = metrics.lines().find(|line| line.starts_with("memdex_vm_direct_io_late_total{"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the figure is there")
    }

    /// No page of the map claims anything wrong, for so long. Nothing writes meanwhile.
    fn nothing_wrong_for(&self, time: Duration, context: &str) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            oracle::compare_claims(&self.daemon, &self.vm).expect_exact(context);
        }
    }

    fn wait_until_right(&self) {
        self.wait_until_read(State::Current, arrived);
        wait::until("everything to have settled", BOUND, || (self.now().pages.stale == 0).then_some(()));
        oracle::compare(&self.daemon, &self.vm).expect_exact("when all has settled");
        self.daemon.verify(&self.vm.id);
    }
}

/// The fingerprint of what the disk brings.
fn arrived(page: u64) -> String {
    blake3::hash(&SlowDisk::page(page)).to_hex().to_string()
}

/// What the guest pages hold now, in the order of the map.
fn content(stand: &Stand) -> Vec<String> {
    let pages = stand.daemon.pages(&stand.vm.id);
    let mut all = oracle::content(&stand.now(), &pages);
    all.drain(..FIRST as usize);
    all.into_iter().take(COUNT as usize).map(Option::unwrap_or_default).collect()
}

/// The reason for all of this. Without a settle time a request that was under way when its pages were armed leaves wrong fingerprints
/// behind, and even an audit of the whole page table finds nothing.
#[test]
fn without_settling_a_late_arrival_is_never_noticed() {
    let scratch = Scratch::new("dio0");
    let mut stand = Stand::new(&scratch, "0");
    stand.open();
    stand.wait_until_noticed();
    let before = content(&stand);
    stand.submit("pread");
    stand.wait_until_armed_and_read(State::Current, &before);
    stand.answer();
    assert!(stand.armed(), "the page table shows nothing");
    assert_eq!(content(&stand), (0..COUNT).map(arrived).collect::<Vec<_>>(), "the bytes have arrived");
    // Marks, scans, and the audit with which a sync begins.
    std::thread::sleep(Duration::from_millis(500));
    stand.daemon.sync(&stand.vm.id);
    let report = oracle::compare_claims(&stand.daemon, &stand.vm);
    assert_eq!(report.differing, COUNT, "without settling nothing tells of them: {report}");
}

fn a_late_arrival_is_found(how: &str) {
    let scratch = Scratch::new("dio");
    let mut stand = Stand::new(&scratch, &SETTLE.as_secs().to_string());
    stand.open();
    stand.wait_until_noticed();
    for round in 0..3 {
        let context = format!("{how}, round {round}");
        stand.guest.write(FIRST, COUNT, 1000 * (round + 1));
        let before = content(&stand);
        stand.submit(how);
        // Read, and not believed: shown as stale with what they probably hold.
        stand.wait_until_armed_and_read(State::Stale, &before);
        stand.nothing_wrong_for(SETTLE / 4, &context);
        stand.answer();
        assert!(stand.armed(), "the page table shows nothing");
        let answered = Instant::now();
        stand.nothing_wrong_for(2 * SETTLE, &context);
        stand.wait_until_right();
        eprintln!("{context}: right {:?} after the arrival", answered.elapsed());
        assert_eq!(stand.late(), COUNT * u64::from(round + 1), "{context}");
    }
    let vm = stand.now();
    assert_eq!((vm.tracking.as_str(), vm.mismatches), ("exact", 0), "{:?}", vm.advisory_reasons);
}

#[test]
fn a_late_arrival_of_pread_is_found_and_never_shown_wrongly() {
    a_late_arrival_is_found("pread");
}

#[test]
fn a_late_arrival_of_aio_is_found_and_never_shown_wrongly() {
    a_late_arrival_is_found("aio");
}

/// Discovery looks at open files once a second. Pages that were armed between the opening of a disk and the look that finds it are shown as
/// current at first, and not for longer.
#[test]
fn a_request_from_before_the_disk_was_noticed_is_not_overlooked() {
    let scratch = Scratch::new("dior");
    let mut stand = Stand::new(&scratch, &SETTLE.as_secs().to_string());
    for round in 0..4 {
        // At another moment between two looks each time.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 270));
        stand.disk.hold();
        stand.guest.write(FIRST, COUNT, 1000 * (round + 1));
        stand.open();
        stand.submit("pread");
        stand.wait_until_noticed();
        // Some ticks to act on it.
        std::thread::sleep(Duration::from_millis(300));
        stand.answer();
        stand.nothing_wrong_for(2 * SETTLE, &format!("round {round}"));
        stand.wait_until_right();
        stand.guest.run("disk close");
        wait::until("the daemon to see that the disk is closed", APPEAR, || {
            stand.now().direct_io.is_none().then_some(())
        });
        // A request may have been under way when it was closed, so for one more settle time what is read is not believed at once.
        std::thread::sleep(SETTLE + Duration::from_millis(500));
    }
    stand.guest.write(FIRST, COUNT, 77);
    stand.daemon.sync(&stand.vm.id);
    assert_eq!(stand.now().pages.stale, 0, "without direct I/O pages settle at once");
}
