//! One system call, made by a thread of the VMM on our behalf.
//!
//! A userfaultfd belongs to the address space of the process that called `userfaultfd()`. A VMM that doesn't know memdex
//! never calls it, so one of its threads is stopped for a moment, makes that one call, and goes on where it was.
//! Owns the stop, the choice of the thread and the way back; never touches the VMM's memory.
//!
//! # On leaving no trace
//!
//! - The thread is changed only in a stop that PTRACE_INTERRUPT caused, and put back in one. There the kernel has not yet
//!   decided how to restart an interrupted system call: with `orig_rax` and `rax` (`-ERESTART…`) as they were, it makes that
//!   decision as if nothing had happened, remaining time-outs included. (At the exit of a system call it would no longer do so.)
//! - System-call stops, not single-stepping: a single step ends in a *forced* SIGTRAP, which resets a handler that was
//!   ignored or blocked. A system-call stop is not a signal.
//! - All signals of the thread stay blocked meanwhile, and pending ones stay pending. A signal the thread was just about
//!   to receive is delivered first. SIGSTOP can't be blocked; it is sent again afterwards.
//! - Some system calls answer a stop with EINTR (signal(7), "Interruption … by stop signals"). For those that only wait,
//!   that is turned into a restart, which a handler of a real signal still turns into EINTR.
//! - A thread in a restartable sequence (rseq) is let go and stopped again: the kernel must see its address on the way
//!   out, to abort the sequence.
//! - A seccomp filter would kill the VMM for a call it doesn't know, so filters are suspended for the stop (kernel
//!   feature of checkpoint/restore), or nothing is injected.
//!
//! # On being killed
//!
//! If the *tracer* dies by SIGKILL between the first change of the registers and the last (some 100 µs, more on a crowded machine, once in the life of a
//! VMM), the kernel detaches the thread as it is, and it runs on with registers that are not its own: the VMM crashes. So the daemon, which people and
//! the kernel do kill, is not the tracer: see [`apart`]. What remains is whoever kills that short-lived process, by its own pid or with
//! all others of its control group. All other ways to end are held off: signals are blocked there, and [`hold_off`] lets the daemon's shutdown wait.

pub mod apart;
mod borrowed;
mod target;

use std::{
    borrow::Cow,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use self::{
    borrowed::{Borrowed, STOP_TIMEOUT, await_interrupt, bring_to_stop},
    target::{ELFCLASS64, ThreadStatus, elf_class, find_gate, threads},
};
use super::{
    process::{Process, is_gone},
    ptrace::{self, Registers, Tracee},
};

/// One injection at a time in the daemon.
static WINDOW: Mutex<()> = Mutex::new(());

/// Waits for an injection that is under way in this process, and lets it begin no new one until the guard is dropped: a process that ends while it injects takes the VMM with it (see
/// the head of the module). For [processes of their own](apart) the daemon's way out waits half a second at most: they outlive it, unless somebody ends all of its control group with it.
pub fn hold_off() -> MutexGuard<'static, ()> {
    apart::wait_for_all();
    WINDOW.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A system call and its arguments.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Number of the system call.
    pub number: i64,
    /// First arguments; the others are zero.
    pub arguments: [u64; 3],
}

/// What an injected call left behind.
#[derive(Debug, Clone, Copy)]
pub struct Returned {
    /// The thread that made the call.
    pub tid: u32,
    /// What the call returned.
    pub value: Result<u64, rustix::io::Errno>,
    /// How long that thread was stopped at most.
    pub stopped: Duration,
}

/// Why nothing was injected. The VMM runs on as if nothing had been tried.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The process has ended.
    #[error("the VMM process has ended; nothing to do")]
    Gone,
    /// The process is stopped by a signal.
    #[error("the VMM process is stopped by a signal (state T); continue it with SIGCONT")]
    Stopped,
    /// A debugger or strace is attached.
    #[error("process {0} traces the VMM, and only one may; detach that debugger or strace")]
    Traced(u32),
    /// Not a 64-bit x86 process.
    #[error("the VMM is a 32-bit process, which memdex can't attach to; use a 64-bit build of it")]
    Foreign,
    /// A filter is active and could not be suspended.
    #[error(
        "the VMM has a seccomp filter, which could kill it for the call, and the filter can't be suspended ({0}); \
         run the daemon with CAP_SYS_ADMIN and without a seccomp filter of its own"
    )]
    Seccomp(io::Error),
    /// No thread stopped in time.
    #[error(
        "no thread of the VMM could be stopped within {0:?} (hung in the kernel?); it will be tried again"
    )]
    Unresponsive(Duration),
    /// A thread was to make the call and did not stop again in time. It may have made it.
    #[error(
        "a thread of the VMM did not come back from the call that it was lent for within {0:?} (hung in the kernel?); it is given back as it was when it stops, which is tried for a minute"
    )]
    Stuck(Duration),
    /// The process that injects could not be run.
    #[error(
        "could not run the process that stops the VMM: {0}; the daemon is out of memory or of processes (`TasksMax=`, a pids limit)"
    )]
    Helper(io::Error),
    /// It ended without an answer.
    #[error(
        "the process that stops the VMM ended with {0} and said nothing: if that was in the midst of it, the VMM may not survive it"
    )]
    HelperEnded(String),
    /// No `syscall` instruction was found.
    #[error(
        "the VMM has no `syscall` instruction in its vDSO nor in its program text; memdex can't attach to it"
    )]
    NoGate,
    /// Anything else.
    #[error("could not {step} the VMM: {error}; the daemon needs CAP_SYS_PTRACE, run it as root")]
    Io {
        /// What failed, as a verb.
        step: Cow<'static, str>,
        /// The system's answer.
        error: io::Error,
    },
}

impl InjectError {
    fn io(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| {
            if is_gone(&error) { Self::Gone } else { Self::Io { step: Cow::Borrowed(step), error } }
        }
    }
}

/// Makes a thread of the process call the system: the main thread, or another one if that is a zombie or does not stop.
///
/// # Errors
/// See [`InjectError`]; the VMM is unharmed in each case but [`InjectError::HelperEnded`].
pub fn call(process: &Process, call: Call) -> Result<Returned, InjectError> {
    if !apart::is_wanted() {
        return call_from_here(process, call);
    }
    // That process goes on without us: nobody has to wait for long who wants to end, or to attach to another VMM.
    apart::call(process.id(), call)
}

/// The same, with a thread of this process as the tracer.
fn call_from_here(process: &Process, call: Call) -> Result<Returned, InjectError> {
    if elf_class(process)? != ELFCLASS64 {
        return Err(InjectError::Foreign);
    }
    let memory = process.with_path("mem", File::open).map_err(InjectError::io("read the memory of"))?;
    let gate = find_gate(process, &memory)?;
    let mut failed = InjectError::Gone;
    for tid in threads(process)? {
        let status = ThreadStatus::read(process, tid).map_err(InjectError::io("look at"))?;
        match status.state {
            'Z' | 'X' => continue,
            'T' => return Err(InjectError::Stopped),
            _ if status.tracer != 0 => return Err(InjectError::Traced(status.tracer)),
            _ => {}
        }
        let injection = Injection { process, memory: &memory, tid, gate, call };
        let window = hold_off();
        // A thread of its own: when it ends, the kernel lets go of the tracee, also of one that never stopped.
        let result = thread::scope(|scope| {
            thread::Builder::new()
                .name("inject".into())
                .spawn_scoped(scope, || injection.run())
                .map_err(InjectError::io("start a thread to stop"))?
                .join()
                .unwrap_or_else(|_| Err(InjectError::io("stop")(io::Error::other("internal error"))))
        });
        drop(window);
        match result {
            Err(error @ (InjectError::Unresponsive(_) | InjectError::Gone)) => failed = error,
            other => return other,
        }
    }
    Err(if process.alive() { failed } else { InjectError::Gone })
}

/// Everything that is needed to make the call, known before the thread is stopped.
struct Injection<'a> {
    process: &'a Process,
    memory: &'a File,
    tid: u32,
    gate: u64,
    call: Call,
}

impl Injection<'_> {
    /// Runs on a thread that ends afterwards.
    fn run(&self) -> Result<Returned, InjectError> {
        let tid = i32::try_from(self.tid).map_err(|_| InjectError::Gone)?;
        ptrace::prepare_this_thread().map_err(InjectError::io("block signals before stopping"))?;
        let mut tracee = Tracee::seize(tid).map_err(|e| self.explain_seize(e))?;
        let begun = Instant::now();
        bring_to_stop(&mut tracee)?;
        self.leave_restartable_sequence(&mut tracee)?;
        if let Err(error) = tracee.mark_system_calls_and_suspend_seccomp() {
            if self.filtered() {
                return Err(InjectError::Seccomp(error));
            }
            tracee.mark_system_calls().map_err(InjectError::io("trace"))?;
        }
        let registers = tracee
            .registers()
            .map_err(InjectError::io("read the registers of"))?
            .ok_or(InjectError::Foreign)?;
        let mask = tracee.signal_mask().map_err(InjectError::io("read the signal mask of"))?;
        let put_back = self.with_restart(registers);

        let pid = i32::try_from(self.process.id().pid).map_err(|_| InjectError::Gone)?;
        let mut borrowed = Borrowed { tracee: &mut tracee, registers: put_back, mask, owed: Vec::new(), pid };
        let value = borrowed.make_call(registers, self.gate, self.call);
        drop(borrowed);
        drop(tracee);
        let stopped = begun.elapsed();
        Ok(Returned { tid: self.tid, value: value?, stopped })
    }

    /// The registers to leave the thread with: as they were, except where the stop itself would show.
    fn with_restart(&self, mut registers: Registers) -> Registers {
        let answer = registers.rax.cast_signed();
        let waiting = WAITING_CALLS.contains(&registers.orig_rax.cast_signed());
        if answer == -i64::from(libc::EINTR) && waiting {
            registers.rax = (-ERESTARTNOHAND).cast_unsigned();
        } else if answer == -ERESTART_RESTARTBLOCK && self.filtered() {
            // This one would go on through restart_syscall(), which a filter may not know. From the start, then: a relative time-out
            // begins anew, nobody is killed.
            registers.rax = (-ERESTARTNOINTR).cast_unsigned();
        }
        registers
    }

    /// Whether seccomp acts on the thread; if that can't be told, it does.
    fn filtered(&self) -> bool {
        ThreadStatus::read(self.process, self.tid).map_or(true, |status| status.seccomp)
    }

    fn explain_seize(&self, error: io::Error) -> InjectError {
        match ThreadStatus::read(self.process, self.tid) {
            Ok(status) if status.tracer != 0 => InjectError::Traced(status.tracer),
            // A thread that is ending refuses with EPERM.
            Ok(status) if matches!(status.state, 'Z' | 'X') => InjectError::Gone,
            _ => InjectError::io("attach to")(error),
        }
    }

    /// Lets a thread that stands in a restartable sequence go on until it doesn't.
    fn leave_restartable_sequence(&self, tracee: &mut Tracee) -> Result<(), InjectError> {
        for _ in 0..50 {
            if !self.in_restartable_sequence(tracee) {
                return Ok(());
            }
            tracee.interrupt().map_err(InjectError::io("interrupt"))?;
            tracee.resume(0).map_err(InjectError::io("resume"))?;
            await_interrupt(tracee, STOP_TIMEOUT)?;
        }
        Err(InjectError::Unresponsive(STOP_TIMEOUT))
    }

    /// Linux' include/uapi/linux/rseq.h: `struct rseq` has at offset 8 the address of the active `struct rseq_cs`, which has at
    /// offset 8 start and length of the sequence.
    fn in_restartable_sequence(&self, tracee: &Tracee) -> bool {
        let (Some(rseq), Ok(Some(registers))) = (tracee.rseq_address(), tracee.registers()) else {
            return false;
        };
        let read = |address: u64| {
            let mut word = [0; 8];
            self.memory.read_exact_at(&mut word, address).map(|()| u64::from_ne_bytes(word))
        };
        match read(rseq + 8) {
            Ok(sequence) if sequence != 0 => match (read(sequence + 8), read(sequence + 16)) {
                (Ok(start), Ok(length)) => registers.rip.wrapping_sub(start) < length,
                _ => false,
            },
            _ => false,
        }
    }
}

/// Kernel-internal answers (include/linux/errno.h) that mean "restart the call": whatever happened in between …
const ERESTARTNOINTR: i64 = 513;
/// … unless a handler ran …
const ERESTARTNOHAND: i64 = 514;
/// … with the time that is left.
const ERESTART_RESTARTBLOCK: i64 = 516;

/// Calls that only wait, answer a mere stop with EINTR, and have done nothing when they do.
const WAITING_CALLS: [i64; 8] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    linux_raw_sys::general::__NR_io_pgetevents as i64,
];
