//! The daemon's own witnesses, held by the bench: attached to a writer, armed and asked by hand.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use indexer::{
    units::Hva,
    vm::descriptor::ProcessId,
    watch::{
        ebpf::{Hooks, MarkLayout, MarkRegion, Marks},
        pagemap::Pagemap,
        process::identify,
        userfault::{self, UserFault},
    },
};

use super::writer::PAGE;

/// Write protection over a process's memory.
#[derive(Debug)]
pub(crate) struct Witness {
    process: ProcessId,
    userfault: UserFault,
    pagemap: Pagemap,
    start: Hva,
    pages: usize,
}

impl Witness {
    /// Attaches, with one system call injected.
    pub(crate) fn attach(pid: u32, start: Hva, pages: usize) -> Self {
        let process = identify(pid).expect("the process runs");
        let userfault = userfault::attach(process).expect("this kernel can watch writes");
        let witness = Self {
            process,
            userfault,
            pagemap: Pagemap::open(process).expect("root may see its page table"),
            start,
            pages,
        };
        witness.userfault.register(witness.range(0..witness.pages)).expect("the memory can be watched");
        witness
    }

    /// Time for which a thread of the process was stopped.
    pub(crate) fn stopped(&self) -> Duration {
        self.userfault.report().stopped
    }

    /// Arms pages with one call; how long that takes.
    pub(crate) fn arm(&self, pages: Range<usize>) -> Duration {
        let began = Instant::now();
        self.userfault.arm(self.range(pages)).expect("the memory can be armed");
        began.elapsed()
    }

    /// Scans all of the memory, read-only: how long that takes, and how many pages were found written.
    pub(crate) fn scan(&self) -> (Duration, u64) {
        let mut written = Vec::new();
        let began = Instant::now();
        self.pagemap.written(self.range(0..self.pages), &mut written).expect("the memory can be scanned");
        let took = began.elapsed();
        (took, written.iter().map(|run| (run.end.0 - run.start.0) / PAGE as u64).sum())
    }

    /// Lets the eBPF programs mark the memory's pages.
    pub(crate) fn track(&self, hooks: &Hooks) -> Marks {
        let len = (self.pages * PAGE) as u64;
        let region = MarkRegion { start: self.start, len, first_page: 0, file: None };
        let layout = MarkLayout { regions: vec![region], memslots: Vec::new(), pages: self.pages as u32 };
        hooks.track(self.process.pid, &layout).expect("the eBPF programs can be loaded (as root)")
    }

    fn range(&self, pages: Range<usize>) -> Range<Hva> {
        let at = |page: usize| self.start.add((page * PAGE) as u64);
        at(pages.start)..at(pages.end)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.userfault.unregister(self.range(0..self.pages));
    }
}
