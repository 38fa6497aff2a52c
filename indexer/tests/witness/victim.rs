//! A process to attach to: forked, single-threaded, its main thread runs the given code and reports through shared memory.
#![expect(unsafe_code, reason = "fork and raw system calls")]

use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use indexer::{
    vm::descriptor::ProcessId,
    watch::process::{Process, identify},
};

/// What the victim and the test both see.
#[repr(C)]
pub(crate) struct Shared {
    /// Loops done.
    pub(crate) rounds: AtomicU64,
    /// Wrong results; 0 if all is well, else a code for people.
    pub(crate) wrong: AtomicU64,
    /// Signals received.
    pub(crate) signals: AtomicU64,
    /// Result of a computation, or microseconds.
    pub(crate) result: AtomicU64,
    /// Set by the test to make the victim finish.
    pub(crate) finish: AtomicU64,
    /// Counts what the test asks for …
    pub(crate) asked: AtomicU64,
    /// … and what the victim has done of it.
    pub(crate) done: AtomicU64,
}

pub(crate) struct Victim {
    pub(crate) pid: i32,
    pub(crate) shared: &'static Shared,
    reaped: bool,
}

impl Shared {
    pub(crate) fn finished(&self) -> bool {
        self.finish.load(SeqCst) != 0
    }

    /// Notes the first wrong result.
    pub(crate) fn check(&self, right: bool, code: u64) {
        if !right {
            let _ = self.wrong.compare_exchange(0, code, SeqCst, SeqCst);
        }
    }

    /// In the victim: waits for the next request.
    pub(crate) fn next(&self) {
        self.done.fetch_add(1, SeqCst);
        while self.asked.load(SeqCst) < self.done.load(SeqCst) && !self.finished() {
            // SAFETY: a plain system call.
            unsafe { libc::usleep(100) };
        }
    }
}

/// Memory that a fork shares.
pub(crate) fn shared_memory(len: usize) -> *mut u8 {
    map(len, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
}

pub(crate) fn map(len: usize, flags: i32, fd: i32) -> *mut u8 {
    // SAFETY: a new mapping.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    assert_ne!(address, libc::MAP_FAILED);
    address.cast()
}

impl Victim {
    /// Forks. The code must not allocate, panic or take locks: another thread of the test may have held one.
    pub(crate) fn spawn(code: impl FnOnce(&'static Shared)) -> Self {
        // SAFETY: zeroed atomics are valid; the mapping is never unmapped.
        let shared: &'static Shared = unsafe { &*shared_memory(4096).cast::<Shared>() };
        // SAFETY: the child only runs code that is safe after fork, and never returns from here.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: plain system calls.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            code(shared);
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(0) };
        }
        Self { pid, shared, reaped: false }
    }

    pub(crate) fn id(&self) -> ProcessId {
        identify(self.pid.cast_unsigned()).unwrap()
    }

    pub(crate) fn process(&self) -> Process {
        Process::open(self.id()).unwrap()
    }

    /// Waits until the victim has done `rounds` loops.
    pub(crate) fn await_rounds(&self, rounds: u64) {
        let begun = Instant::now();
        while self.shared.rounds.load(SeqCst) < rounds {
            assert!(begun.elapsed() < Duration::from_secs(20), "the victim does nothing");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Lets the victim go on with its next request and waits until it has done it.
    pub(crate) fn step(&self) {
        let wanted = self.shared.asked.fetch_add(1, SeqCst) + 1;
        let begun = Instant::now();
        while self.shared.done.load(SeqCst) <= wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "the victim does nothing");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Waits until the victim is ready for its first request.
    pub(crate) fn ready(&self) {
        while self.shared.done.load(SeqCst) == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: our own child, not yet reaped.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    /// Lets the victim finish and says what became of it.
    pub(crate) fn finish(mut self) -> i32 {
        self.shared.finish.store(1, SeqCst);
        self.reap()
    }

    fn reap(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: our own child.
        let reaped = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        // A tracer in the same process may have seen it end first.
        assert!(reaped == self.pid || std::io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD));
        self.reaped = true;
        status
    }

    /// Finishes and asserts that all went well.
    pub(crate) fn finish_well(self) {
        let shared = self.shared;
        assert_eq!(self.finish(), 0, "the victim died");
        assert_eq!(shared.wrong.load(SeqCst), 0, "the victim saw a wrong result");
    }

    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.reap();
    }

    /// State letter from /proc/PID/stat.
    pub(crate) fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }

    pub(crate) fn await_state(&self, wanted: char) {
        let begun = Instant::now();
        while self.state() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "state stays {}", self.state());
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: our own child.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.reap();
        }
    }
}

/// Monotonic time in microseconds, safe after fork.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec * 1_000_000 + time.tv_nsec / 1000).cast_unsigned()
}
