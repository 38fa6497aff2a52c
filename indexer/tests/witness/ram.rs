//! Memory to watch, and a victim that writes it one step at a time.
#![expect(unsafe_code, reason = "plain system calls of the victims, on mappings of the test")]

use std::ops::Range;

use indexer::{
    units::Hva,
    watch::{
        pagemap::{Pagemap, PopulatedRun, ScanError},
        userfault::{self, UserFault},
    },
};

use crate::victim::{Shared, Victim, map};

pub(crate) const PAGE: usize = 4096;

/// Guest RAM of each kind that can be watched; the victim has it at the same address.
#[derive(Clone, Copy)]
pub(crate) struct Ram {
    pub(crate) address: *mut u8,
    pub(crate) pages: usize,
}

impl Ram {
    pub(crate) fn memfd(pages: usize) -> Self {
        // SAFETY: the name is a constant.
        let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), 0) };
        // SAFETY: no memory is touched: nothing is mapped yet.
        assert_eq!(unsafe { libc::ftruncate(fd, (pages * PAGE) as i64) }, 0);
        Self { address: map(pages * PAGE, libc::MAP_SHARED, fd), pages }
    }

    pub(crate) fn anonymous(pages: usize) -> Self {
        Self { address: map(pages * PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1), pages }
    }

    pub(crate) fn range(self) -> Range<Hva> {
        self.part(0..self.pages)
    }

    pub(crate) fn part(self, pages: Range<usize>) -> Range<Hva> {
        let start = self.address as u64;
        Hva(start + (pages.start * PAGE) as u64)..Hva(start + (pages.end * PAGE) as u64)
    }

    pub(crate) fn page(self, page: usize) -> *mut u8 {
        // SAFETY: all callers name pages of the mapping.
        unsafe { self.address.add(page * PAGE) }
    }

    pub(crate) fn write(self, pages: Range<usize>) {
        // SAFETY: the mapping is writable, and only raw pointers lead into it.
        pages.for_each(|page| unsafe { self.page(page).write_volatile(1) });
    }

    pub(crate) fn pages_of(self, ranges: &[Range<Hva>]) -> Vec<Range<usize>> {
        let page = |address: Hva| (address.0 - self.address as u64) as usize / PAGE;
        ranges.iter().map(|range| page(range.start)..page(range.end)).collect()
    }
}

pub(crate) struct Watched {
    pub(crate) victim: Victim,
    pub(crate) ram: Ram,
    pub(crate) pagemap: Pagemap,
    pub(crate) userfault: UserFault,
}

/// A victim that runs one piece of code per step.
pub(crate) fn steps(ram: Ram, code: &[&dyn Fn(&Shared)]) -> Watched {
    let victim = Victim::spawn(|shared| {
        for step in code {
            shared.next();
            step(shared);
        }
        shared.next();
        while !shared.finished() {
            // SAFETY: no memory is touched.
            unsafe { libc::usleep(100) };
        }
    });
    victim.ready();
    let pagemap = Pagemap::open(victim.id()).unwrap();
    let userfault = userfault::attach(victim.id()).unwrap();
    userfault.register(ram.range()).unwrap();
    Watched { victim, ram, pagemap, userfault }
}

impl Watched {
    pub(crate) fn step(&self) {
        self.victim.step();
    }

    pub(crate) fn written(&self) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        self.pagemap.written(self.ram.range(), &mut out).unwrap();
        self.ram.pages_of(&out)
    }

    pub(crate) fn arm(&self, pages: Range<usize>) {
        self.userfault.arm(self.ram.part(pages)).unwrap();
    }

    pub(crate) fn populated(&self) -> Vec<(Range<usize>, bool)> {
        let mut out: Vec<PopulatedRun> = Vec::new();
        self.pagemap.populated(self.ram.range(), true, &mut out).unwrap();
        out.into_iter().map(|run| (self.ram.pages_of(&[run.range])[0].clone(), run.armed)).collect()
    }

    pub(crate) fn refuses(&self) -> bool {
        let mut out = Vec::new();
        let mut runs = Vec::new();
        let range = self.ram.range();
        matches!(self.pagemap.written(range.clone(), &mut out), Err(ScanError::NotWatched))
            && matches!(self.pagemap.populated(range, true, &mut runs), Err(ScanError::NotWatched))
    }
}
