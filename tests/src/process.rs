//! A child process of a test: bounded waits, killed by its own pid when dropped, and by the kernel if the test dies.
#![expect(unsafe_code, reason = "a hook between fork and exec asks the kernel for the parent-death signal")]

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts a command. The child dies with the thread that called this.
    ///
    /// # Panics
    /// If the program can't be started.
    pub fn start(what: impl Into<String>, command: &mut Command) -> Self {
        let what = what.into();
        // Not in our process group: Ctrl-C is for whoever started us, and what it ends is our business.
        command.process_group(0);
        // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from));
        }
        let child =
            command.spawn().unwrap_or_else(|error| panic!("can't start {what} ({command:?}): {error}"));
        Self { child, what }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child's pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether it has not ended.
    ///
    /// # Panics
    /// If the kernel can't say.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// SIGTERM or another signal, by pid.
    pub fn signal(&mut self, signal: Signal) {
        // Not reaped yet, so the pid is still its own.
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.child.id() as i32)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If it does not end within `bound`.
    pub fn wait(&mut self, bound: Duration) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return (status, begun.elapsed());
            }
            assert!(begun.elapsed() < bound, "{} did not end within {bound:?}", self.what);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
