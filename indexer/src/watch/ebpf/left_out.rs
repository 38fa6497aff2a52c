//! Programs that the kernel has left out, and so marks that are missing.
//!
//! The kernel runs no program of a tracepoint while another one runs on that processor, or while a map is being changed there. On a kernel that does not preempt
//! itself neither can be interrupted by a guest's fault. One that does (`preempt=full` or `lazy`) may put a vCPU in the place of a thread that is changing a map, and the
//! fault of that vCPU leaves no mark. But it is counted, before the fault is resolved: so whoever looks at the counts *after* taking the marks knows of all that is
//! missing in them.
//!
//! Owns the counts. What follows from one that has grown is the tracker's part.

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::FileExt as _,
    },
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aya::{Ebpf, programs::Program};

/// Several trackers that look within this time look once.
const TOGETHER: Duration = Duration::from_millis(20);
/// More than an `fdinfo` of a program has, in bytes.
const LONGEST: usize = 1024;

/// How often programs were left out since they were loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LeftOut {
    /// Those on page faults and on KVM: writes without a mark.
    pub(crate) faults: u64,
    /// Those on system calls and migrations: beginnings and ends that were not counted.
    pub(crate) calls: u64,
    /// The one on other processes' mappings.
    pub(crate) mappings: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fault,
    Call,
    Mapping,
}

impl Kind {
    fn of(program: &str) -> Option<Self> {
        match program {
            // Runs when the daemon asks for it.
            "memslots" => None,
            "foreign_mmap" => Some(Self::Mapping),
            _ if program.starts_with("kvm_") || program.contains("fault") => Some(Self::Fault),
            _ => Some(Self::Call),
        }
    }
}

/// Where the counts are, and what they were.
#[derive(Debug)]
pub(super) struct Counts {
    programs: Vec<(Kind, File)>,
    last: Mutex<Option<(Instant, LeftOut)>>,
}

impl Counts {
    /// Of all programs that are loaded.
    pub(super) fn of(object: &Ebpf) -> Self {
        let programs =
            object.programs().filter_map(|(name, program)| Some((Kind::of(name)?, open(program)?)));
        Self { programs: programs.collect(), last: Mutex::new(None) }
    }

    /// The counts, and a moment before which nothing was left out that is not in them.
    pub(super) fn look(&self) -> (Instant, LeftOut) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = last.filter(|(at, _)| at.elapsed() < TOGETHER) {
            return fresh;
        }
        let at = Instant::now();
        let mut sum = LeftOut::default();
        for (kind, file) in &self.programs {
            let count = missed(file).unwrap_or(0);
            *match kind {
                Kind::Fault => &mut sum.faults,
                Kind::Call => &mut sum.calls,
                Kind::Mapping => &mut sum.mappings,
            } += count;
        }
        *last.insert((at, sum))
    }
}

/// Opens what the kernel says of a program; `None` if it is not loaded.
pub(super) fn open(program: &Program) -> Option<File> {
    let fd = program.fd().ok()?;
    File::open(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()
}

/// The one figure of a program that only its `fdinfo` has.
pub(super) fn missed(fdinfo: &File) -> Option<u64> {
    let mut text = [0; LONGEST];
    let len = fdinfo.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..len]).ok()?)
}

fn parse(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_among_the_rest() {
        let text = "pos:\t0\nflags:\t02000002\nprog_type:\t5\nrun_cnt:\t12\nrecursion_misses:\t7\nverified_insns:\t88\n";
        assert_eq!(parse(text), Some(7));
        assert_eq!(parse("pos:\t0\n"), None);
    }

    #[test]
    fn every_program_is_of_a_kind() {
        let kinds =
            ["kvm_page_fault", "page_fault_kernel", "handle_mm_fault", "enter_fallocate", "foreign_mmap"]
                .map(|name| Kind::of(name).unwrap());
        assert_eq!(kinds, [Kind::Fault, Kind::Fault, Kind::Fault, Kind::Call, Kind::Mapping]);
        assert_eq!(Kind::of("memslots"), None);
    }
}
