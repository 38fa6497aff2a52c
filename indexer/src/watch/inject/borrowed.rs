//! A stopped thread, lent for one call and given back as it was.
//!
//! Owns the sequence of stops; the head of [`super`] says why it is this one.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{Call, InjectError, target::GATE};
use crate::watch::{
    process::is_gone,
    ptrace::{self, Registers, Stop, Tracee},
};

/// How long to go on trying to get a changed thread back. Giving up means to leave it as it is.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the thread may take from being resumed to its next stop: one instruction, but perhaps on a crowded machine.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a thread may take to stop before another one is tried. One in an uninterruptible sleep does not stop.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_millis(200);
/// Stops a thread that runs.
pub(super) fn bring_to_stop(tracee: &mut Tracee) -> Result<(), InjectError> {
    tracee.interrupt().map_err(InjectError::io("interrupt"))?;
    await_interrupt(tracee, STOP_TIMEOUT)
}

/// Waits for the stop that was asked for; signals that come first are delivered.
pub(super) fn await_interrupt(tracee: &mut Tracee, timeout: Duration) -> Result<(), InjectError> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tracee.wait(left).map_err(InjectError::io("wait for"))? {
            None => return Err(InjectError::Unresponsive(timeout)),
            Some(Stop::Interrupt) => return Ok(()),
            Some(Stop::Group) => return Err(InjectError::Stopped),
            Some(stop) => {
                // Any stop takes back a pending interrupt, so ask again first.
                tracee.interrupt().map_err(InjectError::io("interrupt"))?;
                let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
                tracee.resume(signal).map_err(InjectError::io("resume"))?;
            }
        }
    }
}

/// No other thread is tried from here on: this one has been changed.
fn stuck(error: InjectError) -> InjectError {
    match error {
        InjectError::Unresponsive(time) => InjectError::Stuck(time),
        other => other,
    }
}

/// A stopped thread whose registers and signal mask are ours; dropping gives them back.
pub(super) struct Borrowed<'a> {
    pub(super) tracee: &'a mut Tracee,
    pub(super) registers: Registers,
    pub(super) mask: u64,
    /// Signals that could not be blocked and were swallowed.
    pub(super) owed: Vec<i32>,
    pub(super) pid: i32,
}

impl Borrowed<'_> {
    pub(super) fn make_call(
        &mut self,
        mut registers: Registers,
        gate: u64,
        call: Call,
    ) -> Result<Result<u64, rustix::io::Errno>, InjectError> {
        self.tracee.set_signal_mask(u64::MAX).map_err(InjectError::io("block the signals of"))?;
        registers.rip = gate;
        registers.rax = call.number.cast_unsigned();
        // Not in a system call: nothing to restart on the way out.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx] = call.arguments;
        [registers.r10, registers.r8, registers.r9] = [0; 3];
        self.tracee.set_registers(&registers).map_err(InjectError::io("set the registers of"))?;
        // To the entry of the call …
        self.tracee.resume_to_system_call().map_err(InjectError::io("resume"))?;
        self.await_stop(Stop::SystemCall, STEP_TIMEOUT).map_err(stuck)?;
        // … and, with the next stop asked for already, through it to the way out of the kernel.
        self.tracee.interrupt().map_err(InjectError::io("interrupt"))?;
        self.tracee.resume(0).map_err(InjectError::io("resume"))?;
        self.await_stop(Stop::Interrupt, STEP_TIMEOUT).map_err(stuck)?;
        let after = self
            .tracee
            .registers()
            .map_err(InjectError::io("read the registers of"))?
            .ok_or(InjectError::Foreign)?;
        if after.orig_rax != call.number.cast_unsigned() || after.rip != gate + GATE.len() as u64 {
            return Err(InjectError::io("follow")(io::Error::other("it did not make the call")));
        }
        Ok(match after.rax.cast_signed() {
            error @ -4095..=-1 => {
                Err(rustix::io::Errno::from_raw_os_error(i32::try_from(-error).unwrap_or(libc::EINVAL)))
            }
            value => Ok(value.cast_unsigned()),
        })
    }

    /// A thread that is asked to stop while all of its process are stopped says so as [`Stop::Group`], and stands at the same place: there is no other answer until
    /// somebody lets the process go on. It can be read and changed there, and the kernel stops it again when it is detached.
    fn await_stop(&mut self, wanted: Stop, timeout: Duration) -> Result<(), InjectError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.tracee.wait(left).map_err(InjectError::io("wait for"))? {
                None => return Err(InjectError::Unresponsive(timeout)),
                Some(stop) if stop == wanted || (wanted == Stop::Interrupt && stop == Stop::Group) => {
                    return Ok(());
                }
                Some(stop) => {
                    self.owe(stop);
                    if wanted == Stop::SystemCall {
                        self.tracee.resume_to_system_call()
                    } else {
                        self.tracee.interrupt().and_then(|()| self.tracee.resume(0))
                    }
                    .map_err(InjectError::io("resume"))?;
                }
            }
        }
    }

    /// Only SIGSTOP gets through a full mask. (A stop of the whole group needs nothing: the kernel stops the thread again
    /// when it is detached.)
    fn owe(&mut self, stop: Stop) {
        if let Stop::Signal(signal) = stop {
            self.owed.push(signal);
        }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if !matches!(self.tracee.stop(), Some(Stop::Interrupt | Stop::Group)) && !self.tracee.ended() {
            // A step failed. Whatever it was, the thread must come to the one kind of stop where it can be put back.
            let _ = self.tracee.interrupt();
            if self.tracee.stop().is_some() {
                let _ = self.tracee.resume(0);
            }
            let _ = self.await_stop(Stop::Interrupt, RESTORE_TIMEOUT);
        }
        let restored =
            self.tracee.set_registers(&self.registers).and_then(|()| self.tracee.set_signal_mask(self.mask));
        // "No such process" is also what is said of a thread that lives and has not stopped.
        if let Err(error) = restored
            && !self.tracee.ended()
            && !(is_gone(&error) && self.tracee.stop().is_some())
        {
            tracing::error!(pid = self.pid, %error, "a VMM thread could not be put back after an injected call");
        }
        for signal in self.owed.drain(..) {
            ptrace::send_signal(self.pid, signal);
        }
    }
}
