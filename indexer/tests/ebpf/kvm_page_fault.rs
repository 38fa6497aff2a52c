//! First writes of a guest to pages KVM has not mapped for it yet.

use indexer::{
    units::Hva,
    watch::{
        pagemap::Pagemap,
        process::identify,
        userfault::{self, UserFault},
    },
};

use crate::{
    All, guest_wrote, hooks, layout_with_slots, take,
    vmm::{GUEST_WRITES, Vmm},
};

/// Whether the processor virtualizes by itself. Where it does not, KVM executes these guests in its instruction emulator, whose writes are page
/// faults of the kernel.
fn virtualizes() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    info.split_whitespace().any(|word| word == "vmx" || word == "svm")
}

#[test]
fn a_guests_first_writes_are_marked_by_guest_physical_address() {
    let mut vmm = Vmm::start(256);
    vmm.tell("kvm 0");
    vmm.tell("slot 3 0 64 64"); // so that neither slot nor address equals the page number
    vmm.tell("slot 7 1048576 0 16");
    if virtualizes() {
        // In the VMM's page table already: only KVM's own tables miss them, and only its own event tells.
        for page in 64..128 {
            vmm.tell(&format!("write {page}"));
        }
    }
    vmm.tell("code 64");
    let mut marks = hooks().track(vmm.pid(), &layout_with_slots(&vmm)).unwrap();
    vmm.tell("run");
    let all = take(&mut marks);
    assert!(guest_wrote(&all, 64), "{all:?}");
}

/// Where the guest's memory begins in the VMM's.
const FIRST: u32 = 64;
/// As many as a byte has bits.
const WRITES: u32 = GUEST_WRITES.end - GUEST_WRITES.start;

/// The pages a guest writes, as the page table has them.
struct Pages {
    address: u64,
    pagemap: Pagemap,
    userfault: UserFault,
}

impl Pages {
    fn watch(vmm: &Vmm) -> Self {
        let process = identify(vmm.pid()).unwrap();
        let pages = Self {
            address: vmm.ram.address + u64::from(FIRST + GUEST_WRITES.start) * 4096,
            pagemap: Pagemap::open(process).unwrap(),
            userfault: userfault::attach(process).unwrap(),
        };
        let whole = Hva(vmm.ram.address);
        pages.userfault.register(whole..whole.add(u64::from(vmm.ram.pages) * 4096)).unwrap();
        pages
    }

    fn at(&self, page: u32) -> Hva {
        Hva(self.address + u64::from(page) * 4096)
    }

    fn arm(&self, set: u8) {
        for page in (0..WRITES).filter(|page| set & 1 << page != 0) {
            self.userfault.arm(self.at(page)..self.at(page + 1)).unwrap();
        }
    }

    /// Those that are protected, and have not been written since.
    fn armed(&self) -> u8 {
        let mut written = Vec::new();
        self.pagemap.written(self.at(0)..self.at(WRITES), &mut written).unwrap();
        let open =
            |page: u32| written.iter().any(|run| run.start <= self.at(page) && self.at(page) < run.end);
        (0..WRITES).filter(|page| !open(*page)).fold(0, |set, page| set | 1 << page)
    }
}

/// The pages that were marked, as a set like those of [`Pages`].
fn marked(all: &All) -> u8 {
    let first = FIRST + GUEST_WRITES.start;
    all.written.iter().cloned().flatten().fold(0, |set, page| set | 1 << (page - first))
}

/// Two witnesses that share nothing: for every subset of the pages a guest writes, those that were armed are the ones that are
/// marked, and the ones that the page table shows as written. Where the processor virtualizes the marks are KVM's event alone.
#[test]
fn the_marks_and_the_page_table_name_the_same_pages() {
    let mut vmm = Vmm::start(256);
    vmm.tell("kvm 0");
    vmm.tell(&format!("slot 3 0 {FIRST} 64"));
    let pages = Pages::watch(&vmm);
    // Every page is mapped for writing then, in the VMM's table and in KVM's.
    for page in FIRST..FIRST + 64 {
        vmm.tell(&format!("write {page}"));
    }
    vmm.tell(&format!("code {FIRST}"));
    vmm.tell("run");
    assert_eq!(pages.armed(), 0);

    let mut marks = hooks().track(vmm.pid(), &layout_with_slots(&vmm)).unwrap();
    let runs = |name: &str| {
        let all = hooks().statistics();
        all.iter().find(|program| program.name == name).map_or(0, |program| program.runs)
    };
    let before = runs("kvm_page_fault");
    let (mut by_mark, mut by_scan) = (0, 0);
    for set in 0..=u8::MAX {
        pages.arm(set);
        assert_eq!(pages.armed(), set);
        let all = take(&mut marks);
        assert_eq!(all, All::default(), "arming is no write");
        vmm.tell("run");
        let scanned = set & !pages.armed();
        let marked = marked(&take(&mut marks));
        assert_eq!((marked, scanned), (set, set), "marked, written");
        by_mark += marked.count_ones();
        by_scan += scanned.count_ones();
    }
    let faults = runs("kvm_page_fault") - before;
    if virtualizes() {
        assert!(faults >= u64::from(by_mark), "{faults} events for {by_mark} pages");
    }
    println!("kernel-fact: pages marked / written by scan = {by_mark} / {by_scan}");
    println!("kernel-fact: kvm_page_fault events = {faults}");
}
