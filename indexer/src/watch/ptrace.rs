//! Safe face of the few ptrace requests that an injected system call takes.
//!
//! Owns the attachment: a [`Tracee`] is detached when it is dropped. Knows nothing of what is injected or why.
//!
//! ptrace binds the tracee to the *thread* that seized it, so a [`Tracee`] must not leave its thread (it is neither
//! `Send` nor `Sync`). A tracee that never stopped can't be detached; it is released when that thread ends.
#![expect(unsafe_code, reason = "ptrace, waitpid and signal masks are raw system calls")]

use std::{
    io,
    marker::PhantomData,
    time::{Duration, Instant},
};

/// The general-purpose registers of a thread.
pub(super) type Registers = libc::user_regs_struct;

/// A thread attached with PTRACE_SEIZE.
pub(super) struct Tracee {
    tid: i32,
    state: State,
    _stays_on_its_thread: PhantomData<*const ()>,
}

/// What is known about the tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Stopped(Stop),
    Ended,
}

/// Why a tracee stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// PTRACE_INTERRUPT took effect. The thread stands on its way out of the kernel, where a pending restart of a
    /// system call has not been worked out yet: the one place where registers may be changed and put back.
    Interrupt,
    /// The whole process is stopped by a signal (SIGSTOP and kin).
    Group,
    /// At the entry or exit of a system call.
    SystemCall,
    /// About to receive a signal; it is lost unless it is passed on.
    Signal(i32),
}

/// Requests that the `libc` crate lacks or has with another type.
mod request {
    pub(super) const SYSCALL: libc::c_uint = 24;
    pub(super) const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    pub(super) const O_TRACESYSGOOD: usize = 1;
    pub(super) const O_SUSPEND_SECCOMP: usize = 1 << 21;
}

impl Tracee {
    /// Attaches to a thread without stopping it.
    pub(super) fn seize(tid: i32) -> io::Result<Self> {
        ptrace(libc::PTRACE_SEIZE, tid, 0, 0)?;
        Ok(Self { tid, state: State::Running, _stays_on_its_thread: PhantomData })
    }

    /// Asks for a stop. In a stop already: for another one right after it is resumed.
    pub(super) fn interrupt(&self) -> io::Result<()> {
        ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0)
    }

    /// Waits for the next stop; `None` if there was none in time.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<Option<Stop>> {
        let begun = Instant::now();
        loop {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the result.
            match unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) } {
                0 => {}
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.raw_os_error() == Some(libc::ECHILD) {
                        self.state = State::Ended;
                        return Err(ended());
                    }
                    return Err(error);
                }
                _ => {
                    self.state = interpret(status);
                    return match self.state {
                        State::Stopped(stop) => Ok(Some(stop)),
                        State::Running => continue,
                        State::Ended => Err(ended()),
                    };
                }
            }
            // waitpid has no time-out. The stop usually takes some 10 µs, so first give way only; then sleep a little.
            match begun.elapsed() {
                waited if waited > timeout => return Ok(None),
                waited if waited > Duration::from_millis(2) => std::thread::sleep(Duration::from_micros(50)),
                _ => std::thread::yield_now(),
            }
        }
    }

    /// The stop the tracee is in, if it is in one.
    pub(super) fn stop(&self) -> Option<Stop> {
        match self.state {
            State::Stopped(stop) => Some(stop),
            State::Running | State::Ended => None,
        }
    }

    /// Whether the thread is no more.
    pub(super) fn ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Lets the thread run on, delivering `signal` (0: none; counts only in a [`Stop::Signal`]).
    pub(super) fn resume(&mut self, signal: i32) -> io::Result<()> {
        self.resume_with(libc::PTRACE_CONT, signal)
    }

    /// Lets the thread run to the entry or exit of a system call.
    pub(super) fn resume_to_system_call(&mut self) -> io::Result<()> {
        self.resume_with(request::SYSCALL, 0)
    }

    fn resume_with(&mut self, request: libc::c_uint, signal: i32) -> io::Result<()> {
        ptrace(request, self.tid, 0, usize::try_from(signal).unwrap_or(0))?;
        self.state = State::Running;
        Ok(())
    }

    /// Makes [`Stop::SystemCall`] distinguishable from a SIGTRAP.
    pub(super) fn mark_system_calls(&self) -> io::Result<()> {
        ptrace(libc::PTRACE_SETOPTIONS, self.tid, 0, request::O_TRACESYSGOOD)
    }

    /// The same, and seccomp filters do not act until the thread is detached. Wants CAP_SYS_ADMIN, a kernel with
    /// CONFIG_CHECKPOINT_RESTORE, and no filter on the caller itself.
    pub(super) fn mark_system_calls_and_suspend_seccomp(&self) -> io::Result<()> {
        ptrace(libc::PTRACE_SETOPTIONS, self.tid, 0, request::O_TRACESYSGOOD | request::O_SUSPEND_SECCOMP)
    }

    /// The registers; `None` if the thread runs 32-bit code.
    pub(super) fn registers(&self) -> io::Result<Option<Registers>> {
        // SAFETY: all-zero bits are a valid value of a structure of integers.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        let mut vector =
            libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of::<Registers>() };
        ptrace(libc::PTRACE_GETREGSET, self.tid, NT_PRSTATUS, &raw mut vector as usize)?;
        // The kernel says by the length which kind of registers the thread has.
        Ok((vector.iov_len == size_of::<Registers>()).then_some(registers))
    }

    /// Replaces the registers.
    pub(super) fn set_registers(&self, registers: &Registers) -> io::Result<()> {
        let vector = libc::iovec {
            iov_base: (&raw const *registers).cast_mut().cast(),
            iov_len: size_of::<Registers>(),
        };
        ptrace(libc::PTRACE_SETREGSET, self.tid, NT_PRSTATUS, &raw const vector as usize)
    }

    /// The set of blocked signals; bit 0 is signal 1.
    pub(super) fn signal_mask(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        ptrace(libc::PTRACE_GETSIGMASK, self.tid, size_of::<u64>(), &raw mut mask as usize)?;
        Ok(mask)
    }

    /// Replaces the set of blocked signals.
    pub(super) fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        ptrace(libc::PTRACE_SETSIGMASK, self.tid, size_of::<u64>(), &raw const mask as usize)
    }

    /// Address of the thread's `struct rseq`; `None` if it has none or the kernel (before 5.13) can't tell.
    pub(super) fn rseq_address(&self) -> Option<u64> {
        let mut configuration = [0_u64; 3];
        ptrace(
            request::GET_RSEQ_CONFIGURATION,
            self.tid,
            size_of_val(&configuration),
            &raw mut configuration as usize,
        )
        .ok()?;
        (configuration[0] != 0).then_some(configuration[0])
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if self.stop().is_some() {
            // ESRCH here: killed meanwhile, nothing is left to detach from.
            let _ = ptrace(libc::PTRACE_DETACH, self.tid, 0, 0);
        }
    }
}

const NT_PRSTATUS: usize = 1;

fn ended() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

fn interpret(status: i32) -> State {
    if !libc::WIFSTOPPED(status) {
        return if libc::WIFCONTINUED(status) { State::Running } else { State::Ended };
    }
    let signal = libc::WSTOPSIG(status);
    State::Stopped(match status >> 16 {
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
        libc::PTRACE_EVENT_STOP => Stop::Group,
        _ if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        _ => Stop::Signal(signal),
    })
}

/// Every argument that is an address must be one of a live object as large as the request wants; all callers are above.
fn ptrace(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: none of the requests used here (those that write to this process among them get the address of a local
    // variable of the right size) touches other memory of this process.
    match unsafe { libc::ptrace(request, tid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Blocks every signal in the calling thread and gives it an ordinary scheduling class with the highest priority it may
/// have. For a thread that ends soon: nothing is put back.
pub(super) fn prepare_this_thread() -> io::Result<()> {
    block_signals()?;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: plain calls on the calling thread (id 0). The daemon's workers run at low priority and threads inherit
    // that; a VMM must not stand still because this one waits for a processor. Failing is no obstacle.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters);
        libc::setpriority(libc::PRIO_PROCESS, 0, -20);
    }
    Ok(())
}

/// Blocks every signal in the calling thread, and in those that it will start.
pub(super) fn block_signals() -> io::Result<()> {
    // SAFETY: all-zero bits are a valid `sigset_t`; `sigfillset` overwrites it.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is valid, the old mask isn't asked for.
    let failed = unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

/// Sends a signal to a process.
pub(super) fn send_signal(pid: i32, signal: i32) {
    // SAFETY: a plain system call. The receiver may be gone: nothing to do then.
    let _ = unsafe { libc::kill(pid, signal) };
}
