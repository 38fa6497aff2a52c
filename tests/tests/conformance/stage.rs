//! A guest, a daemon with the witnesses in question, and the judgement: what the map says of the pages that were written, held against the
//! bytes in them. Owns the order of things for each row.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, PAGE, Scratch, Tiny,
    contract::{Coverage, Page, State, Vm},
    daemon, oracle, tiny, wait,
};

use crate::{
    host::{HugeTmpfs, direct_io_is_possible},
    kinds::{Kind, PLUGGED_PAGES},
    table::{OUT, Ram, Row, Sees, TABLE, TRANSIENT, Witness},
};

/// Size of slot 0.
pub(crate) const MIB: u64 = 16;
const PAGES: u64 = MIB << 8;
/// Pages that each row writes.
const COUNT: u64 = 8;
/// A write that a witness sees is noticed within this time: half of the time after which an audit finds it, as after any sync.
const NOTICED: Duration = Duration::from_secs(5);
/// One that no witness sees is not noticed within this time, many times as long as it takes where one does.
const UNNOTICED: Duration = Duration::from_secs(1);
/// What was noticed is read and known again within this time; direct I/O has to settle first.
const KNOWN_AGAIN: Duration = Duration::from_secs(10);
/// So long after it was read a page is looked at only where a hook says so.
const NO_LONGER_NEW: Duration = Duration::from_secs(4);
/// Discovery has found what there is to be found: it looks at the whole host by turns.
const FOUND: Duration = Duration::from_secs(12);

pub(crate) struct Stage {
    witness: Witness,
    ram: Ram,
    daemon: Daemon,
    guest: Tiny,
    vm: Vm,
    /// What disk and io_uring read.
    file: PathBuf,
    seed: u32,
    _tmpfs: Option<HugeTmpfs>,
    scratch: Scratch,
}

impl Stage {
    pub(crate) fn new(witness: Witness, ram: Ram) -> Self {
        let scratch = Scratch::new("conform");
        let tmpfs = (ram == Ram::HugeTmpfs).then(|| HugeTmpfs::mount(&scratch));
        let kind = match ram {
            Ram::Memfd => tiny::Ram::Memfd,
            Ram::Anonymous => tiny::Ram::Anonymous,
            Ram::Hugetlb => tiny::Ram::Hugetlb,
            Ram::HugeTmpfs => tiny::Ram::File(tmpfs.as_ref().expect("just made").folder().join("ram")),
        };
        let log = if witness == Witness::DirtyRing { "ring" } else { "none" };
        let options = tiny::Options { mib: MIB, ram: kind, log, ..tiny::Options::default() };
        let mut guest = Tiny::start_with(&scratch, &scratch.name("c"), &options);
        // By the VMM, so that no page has still to be mapped by it: a witness that only sees such faults would seem to see writes.
        guest.run(&format!("poke 1 {} 1", PAGES - 1));
        let file = scratch.path("disk");
        let content: Vec<u8> = (0..COUNT * PAGE).map(|at| (at / PAGE * 7 + at % 251) as u8).collect();
        fs::write(&file, content).expect("a file can be written");

        let mut options = daemon::Options { arguments: witness.arguments(), ..daemon::Options::default() };
        // Neither settling nor the background audit shall help where a witness fails.
        let more = ["--settle-seconds", "1", "--audit-percent", "0"];
        options.arguments.extend(more.map(str::to_owned));
        let daemon = Daemon::start_with(&scratch, "memdexd", &options);
        let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
        Self { witness, ram, daemon, guest, vm, file, seed: 0, _tmpfs: tmpfs, scratch }
    }

    /// All rows for this kind of RAM.
    pub(crate) fn perform(&mut self) {
        let rows: Vec<&Row> = TABLE
            .iter()
            .filter(|row| row.rams.contains(&self.ram) && row.sees[self.witness as usize] != Sees::NotTried)
            .collect();
        let possible = |row: &&Row| row.kind != Kind::DirectIo || direct_io_is_possible(&self.file);
        let rows: Vec<&Row> = rows.into_iter().filter(possible).collect();
        assert!(!rows.is_empty(), "nothing is expected of {:?}", self.ram);
        let rows = rows.into_iter().enumerate();
        let (alone, together): (Vec<_>, Vec<_>) = rows.partition(|(_, row)| row.kind.alone());
        if self.witness == Witness::All {
            // Else it might be no hook that sees what is written. Not longer where the processor is slow: time is the daemon's.
            self.daemon.sync(&self.vm.id);
            std::thread::sleep(NO_LONGER_NEW);
        }
        self.rows(&together);
        for row in alone {
            self.rows(&[row]);
        }
    }

    /// The VM is there, but its memory is not, and it says so.
    pub(crate) fn expect_no_memory(&self) {
        let reason = Sees::Nowhere.reason().expect("it has one");
        wait::until(reason, FOUND, || {
            let vm = self.daemon.vm_of(self.guest.pid())?;
            let said = vm.advisory_reasons.iter().any(|text| text.contains(reason));
            (vm.tracking == "advisory" && vm.pages.total == 0 && said).then_some(())
        });
    }

    /// Writes of these kinds, all at once, each to pages of its own: those of its place in the table.
    fn rows(&mut self, rows: &[(usize, &Row)]) {
        let file = self.file.display().to_string();
        let mut props = Vec::new();
        for (at, row) in rows {
            let pages = self.own_pages(*at);
            props.push(row.kind.prepare(&self.scratch, &mut self.guest, &file, pages));
        }
        for (_, row) in rows {
            self.expect_tracking(row);
        }
        self.daemon.sync(&self.vm.id);
        self.known_and_right(&format!("before {:?}", kinds(rows)));

        let look = self.look();
        let before: Vec<_> = rows.iter().map(|(at, row)| self.pages_of(row, *at, &look)).collect();
        for ((at, row), props) in rows.iter().zip(&mut props) {
            self.seed += 1000;
            let pages = self.own_pages(*at);
            row.kind.write(&mut self.guest, props, pages, self.seed);
        }
        self.judge(rows);
        self.daemon.sync(&self.vm.id);
        self.known_and_right(&format!("after a sync, {:?}", kinds(rows)));
        let look = self.look();
        for ((at, row), before) in rows.iter().zip(before) {
            let after = self.pages_of(row, *at, &look);
            let same =
                before.iter().zip(&after).filter(|(before, after)| before.truth == after.truth).count();
            // Of all of the memory some was zero before.
            let few = if row.kind.changes_all() { after.len() / 10 } else { 0 };
            let changed = same <= few && before.len() == after.len();
            assert!(changed, "{}", self.words(row, "nothing was written"));
        }
        for ((_, row), props) in rows.iter().zip(props) {
            row.kind.end(&mut self.guest, props);
        }
        self.calm();
    }

    /// What was just written is noticed and then known, or not noticed, as the table says.
    fn judge(&self, rows: &[(usize, &Row)]) {
        let written = Instant::now();
        let (late, seen): (Vec<_>, Vec<_>) =
            rows.iter().partition(|(_, row)| matches!(self.sees(row), Sees::Late(_)));
        self.expect(&seen, "to be noticed", NOTICED, |_| true, Seen::claims_nothing_wrong);
        if !late.is_empty() {
            wait::pause(UNNOTICED.saturating_sub(written.elapsed()));
            let look = self.look();
            for (at, row) in late {
                let noticed = all(&self.pages_of(row, *at, &look), Seen::claims_nothing_wrong);
                assert!(!noticed, "{}", self.words(row, "noticed: better than the table says"));
            }
        }
        self.expect(&seen, "to be known again", KNOWN_AGAIN, Self::nothing_is_stale, Seen::is_known);
    }

    /// Soon every page of each of these rows is as it should be, all in one look: that takes its time where the processor is emulated.
    fn expect(
        &self,
        rows: &[&(usize, &Row)],
        what: &str,
        bound: Duration,
        worth_a_look: fn(&Self) -> bool,
        right: fn(&Seen) -> bool,
    ) {
        if rows.is_empty() {
            return;
        }
        wait::until_right(what, bound, || {
            if !worth_a_look(self) {
                return Err("some pages are stale".to_owned());
            }
            let look = self.look();
            let wrong = rows.iter().find(|(at, row)| !all(&self.pages_of(row, *at, &look), right));
            wrong.map_or(Ok(()), |(_, row)| Err(self.words(row, what)))
        });
    }

    /// First page and number of the pages of the `at`-th row. No row that discards shares a huge page with one that is done beside it.
    fn own_pages(&self, at: usize) -> (u64, u64) {
        let stride = if self.ram == Ram::HugeTmpfs { 512 } else { 96 };
        (40 + at as u64 * stride, COUNT)
    }

    fn sees(&self, row: &Row) -> Sees {
        row.sees[self.witness as usize]
    }

    fn words(&self, row: &Row, what: &str) -> String {
        let vm = self.daemon.vm_of(self.guest.pid());
        let reasons = vm.map(|vm| (vm.tracking, vm.advisory_reasons));
        format!("{:?} in {:?} with {:?}: {what} ({reasons:?})", row.kind, self.ram, self.witness)
    }

    /// The VM is as exact as the table says, and for no other reason; and so is its region.
    fn expect_tracking(&self, row: &Row) {
        let sees = self.sees(row);
        wait::until(&self.words(row, &format!("the VM to be {sees:?}")), FOUND, || {
            let vm = self.daemon.vm_of(self.guest.pid())?;
            if row.kind.plugs() && vm.pages.total != PAGES + PLUGGED_PAGES {
                return None;
            }
            let holds = |text: &str| vm.advisory_reasons.iter().any(|reason| reason.contains(text));
            let right = match sees.reason() {
                None => vm.tracking == "exact" && vm.advisory_reasons.is_empty(),
                Some(text) => vm.tracking == "advisory" && holds(text),
            };
            // A region that is not watched says so, and not what is wrong with all of the VM besides.
            let of_region = |region: &Coverage| match (sees.reason(), &region.reason) {
                (None, None) => region.status == "exact",
                (Some(text), Some(reason)) => {
                    region.status != "exact" && (reason.contains(text) || reason.contains(OUT))
                }
                _ => false,
            };
            (right && vm.coverage.iter().all(of_region)).then_some(())
        });
    }

    /// The map as it is now; nothing while the VM is being laid out anew.
    fn look(&self) -> Option<(Vm, Vec<Page>)> {
        let vm = self.daemon.vm_of(self.guest.pid())?;
        let pages = self.daemon.pages_if_still(&vm.id)?;
        (pages.len() as u64 == vm.pages.total && vm.pages.total >= PAGES).then_some((vm, pages))
    }

    /// The pages of a row in it, and what is in them.
    fn pages_of(&self, row: &Row, at: usize, look: &Option<(Vm, Vec<Page>)>) -> Vec<Seen> {
        let Some((vm, pages)) = look else { return Vec::new() };
        let (first, count) = match (row.kind.plugs(), row.kind.changes_all()) {
            (true, _) => (PAGES, COUNT),
            (_, true) => (1, PAGES - 1),
            _ => self.own_pages(at),
        };
        let sources: Vec<_> = vm.coverage.iter().map(|region| oracle::source(vm, region)).collect();
        let own = pages.iter().filter(|page| (first..first + count).contains(&page.page));
        own.map(|page| Seen {
            state: page.state,
            fingerprint: page.fingerprint.clone(),
            truth: oracle::truth(page, &sources[page.region as usize]),
        })
        .collect()
    }

    /// Every page of the map is known and right: at once what is shown as known, and soon all. (Direct I/O has to settle first; and as often
    /// as discovery finds something out, all is read anew.)
    fn known_and_right(&self, context: &str) {
        let context = format!("{:?}, {:?}, {context}", self.ram, self.witness);
        let claims = oracle::compare_claims(&self.daemon, &self.vm);
        claims.expect_exact(&context);
        if claims.states[State::Stale as usize] == 0 {
            return;
        }
        let known = || {
            (self.nothing_is_stale() && oracle::compare(&self.daemon, &self.vm).differing == 0).then_some(())
        };
        wait::until(&format!("{context}: every page to be known"), KNOWN_AGAIN, known);
    }

    /// Cheap: the map itself is a long text.
    fn nothing_is_stale(&self) -> bool {
        self.daemon.vm_of(self.guest.pid()).is_some_and(|vm| vm.pages.stale == 0)
    }

    /// What a row brought about is over.
    fn calm(&self) {
        wait::until(&format!("{:?} to be as it was", self.vm.name), FOUND, || {
            let vm = self.daemon.vm_of(self.guest.pid())?;
            let holds = |text: &str| vm.advisory_reasons.iter().any(|reason| reason.contains(text));
            (vm.pages.total == PAGES && !TRANSIENT.iter().any(|text| holds(text))).then_some(())
        });
    }
}

/// A page as the map shows it, and its bytes' hash.
struct Seen {
    state: State,
    fingerprint: Option<String>,
    truth: Option<String>,
}

impl Seen {
    fn claims_nothing_wrong(&self) -> bool {
        self.state == State::Stale || self.fingerprint == self.truth
    }

    fn is_known(&self) -> bool {
        self.state != State::Stale && self.fingerprint == self.truth
    }
}

/// No pages are not all right.
fn all(pages: &[Seen], right: impl Fn(&Seen) -> bool) -> bool {
    !pages.is_empty() && pages.iter().all(right)
}

impl Witness {
    /// What a daemon is told to have just these.
    pub(crate) fn arguments(self) -> Vec<String> {
        let names: &[&str] = match self {
            Self::All | Self::SoftDirty => &[],
            Self::WriteProtect => &["write-protect"],
            Self::DirtyRing => &["ebpf"],
            Self::Rehash => &["rehash"],
        };
        names.iter().flat_map(|name| ["--witness".to_owned(), (*name).to_owned()]).collect()
    }
}

impl Sees {
    fn reason(self) -> Option<&'static str> {
        match self {
            Self::Exact | Self::NotTried => None,
            Self::Known(text) | Self::Late(text) => Some(text),
            Self::Nowhere => Some("no guest memory was found"),
        }
    }
}

fn kinds(rows: &[(usize, &Row)]) -> Vec<Kind> {
    rows.iter().map(|(_, row)| row.kind).collect()
}
