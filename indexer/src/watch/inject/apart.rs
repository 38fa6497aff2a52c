//! An injection by a process of its own, which ends it properly if the daemon is killed meanwhile.
//!
//! # Why a process
//!
//! While a thread of the VMM is borrowed it has registers that are not its own. A tracer that is killed then lets it go as it is, and the VMM
//! crashes. A daemon can be killed at any instant, by its memory, by an operator, by a bug of its own; and it is at its busiest when it has just found
//! VMs. So the daemon is not the tracer: it starts `memdexd inject`, a process that does this one thing, in some milliseconds, with all
//! signals blocked and as the last one to be killed when memory is short. Nobody has a reason to kill it, and nothing else in it can fail.
//!
//! Its whole life is on its command line and on its standard output: which process, which call; what came of it. Should nobody be there to hear
//! that, the call was made all the same: a descriptor that was to be fetched then stays in the VMM, unused, until that ends.

use std::{
    borrow::Cow,
    io::{self, Read, Write},
    process::{Command, ExitCode, Stdio},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Call, InjectError, Returned, call_from_here};
use crate::{
    vm::descriptor::ProcessId,
    watch::{
        process::{Process, is_gone},
        ptrace,
    },
};

/// The word on the command line of `memdexd` that makes it the process that injects.
pub const ROLE: &str = "inject";

/// Longest wait for the process: more than all the bounds that it has for its own steps.
const LONGEST: Duration = Duration::from_secs(120);
/// Time between two looks whether it has ended.
const LOOK: Duration = Duration::from_micros(500);
/// Bytes of an answer: they fit into a pipe, so nobody has to read them before the process ends.
const MOST: u64 = 4096;

static APART: AtomicBool = AtomicBool::new(false);

/// From now on calls are injected by processes of their own. For `memdexd` itself: the program that runs has to know [`ROLE`].
pub fn from_now_on() {
    APART.store(true, Relaxed);
}

pub(super) fn is_wanted() -> bool {
    APART.load(Relaxed)
}

/// How it went, as a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Made { tid: u32, value: Result<u64, i32>, stopped: Duration },
    Gone,
    Stopped,
    Traced(u32),
    Foreign,
    Seccomp(Words),
    Unresponsive(Duration),
    Stuck(Duration),
    Helper(Words),
    HelperEnded(String),
    NoGate,
    Io { step: String, error: Words },
}

/// An `io::Error` on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Words {
    number: Option<i32>,
    text: String,
}

impl From<io::Error> for Words {
    fn from(error: io::Error) -> Self {
        Self { number: error.raw_os_error(), text: error.to_string() }
    }
}

impl From<Words> for io::Error {
    fn from(words: Words) -> Self {
        words.number.map_or_else(|| Self::other(words.text), Self::from_raw_os_error)
    }
}

impl From<Result<Returned, InjectError>> for Answer {
    fn from(result: Result<Returned, InjectError>) -> Self {
        match result {
            Ok(Returned { tid, value, stopped }) => {
                Self::Made { tid, value: value.map_err(rustix::io::Errno::raw_os_error), stopped }
            }
            Err(InjectError::Gone) => Self::Gone,
            Err(InjectError::Stopped) => Self::Stopped,
            Err(InjectError::Traced(tracer)) => Self::Traced(tracer),
            Err(InjectError::Foreign) => Self::Foreign,
            Err(InjectError::Seccomp(error)) => Self::Seccomp(error.into()),
            Err(InjectError::Unresponsive(time)) => Self::Unresponsive(time),
            Err(InjectError::Stuck(time)) => Self::Stuck(time),
            Err(InjectError::Helper(error)) => Self::Helper(error.into()),
            Err(InjectError::HelperEnded(how)) => Self::HelperEnded(how),
            Err(InjectError::NoGate) => Self::NoGate,
            Err(InjectError::Io { step, error }) => Self::Io { step: step.into_owned(), error: error.into() },
        }
    }
}

impl From<Answer> for Result<Returned, InjectError> {
    fn from(answer: Answer) -> Self {
        Err(match answer {
            Answer::Made { tid, value, stopped } => {
                let value = value.map_err(rustix::io::Errno::from_raw_os_error);
                return Ok(Returned { tid, value, stopped });
            }
            Answer::Gone => InjectError::Gone,
            Answer::Stopped => InjectError::Stopped,
            Answer::Traced(tracer) => InjectError::Traced(tracer),
            Answer::Foreign => InjectError::Foreign,
            Answer::Seccomp(error) => InjectError::Seccomp(error.into()),
            Answer::Unresponsive(time) => InjectError::Unresponsive(time),
            Answer::Stuck(time) => InjectError::Stuck(time),
            Answer::Helper(error) => InjectError::Helper(error.into()),
            Answer::HelperEnded(how) => InjectError::HelperEnded(how),
            Answer::NoGate => InjectError::NoGate,
            Answer::Io { step, error } => InjectError::Io { step: Cow::Owned(step), error: error.into() },
        })
    }
}

/// Processes that inject at the same time, mostly: each stops a thread of a VMM, and they would be in each other's way.
const AT_ONCE: usize = 2;
/// Longest wait for others: one may be hung.
const TURN: Duration = Duration::from_secs(1);
/// Longest wait of a daemon that ends for those that are under way. They do not need it; it would hear how it went.
const END: Duration = Duration::from_millis(500);

/// Processes that are under way.
static UNDER_WAY: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        *wait_for_fewer(AT_ONCE, TURN) += 1;
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_all();
    }
}

fn wait_for_fewer(than: usize, longest: Duration) -> MutexGuard<'static, usize> {
    let count = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    ENDED.wait_timeout_while(count, longest, |count| *count >= than).unwrap_or_else(PoisonError::into_inner).0
}

/// Waits for processes that are under way, but not for one that is hung.
pub(super) fn wait_for_all() {
    drop(wait_for_fewer(1, END));
}

/// Has the call made, and waits for the answer.
pub(super) fn call(process: ProcessId, call: Call) -> Result<Returned, InjectError> {
    // Whatever is missing, it is not the VMM.
    let failed = InjectError::Helper;
    let _turn = UnderWay::begin();
    let numbers = [u64::from(process.pid), process.start_time, call.number.cast_unsigned()];
    let mut child = Command::new("/proc/self/exe")
        .arg(ROLE)
        .args(numbers.into_iter().chain(call.arguments).map(|number| number.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if begun.elapsed() < LONGEST => std::thread::sleep(LOOK),
            None => {
                // To kill it could kill the VMM. It is only waited for, so that it does not stay as a zombie.
                std::thread::spawn(move || drop(child.wait()));
                return Err(InjectError::Unresponsive(LONGEST));
            }
        }
    };
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MOST).read_to_end(&mut answer).map_err(failed)?;
    }
    match serde_json::from_slice::<Answer>(&answer) {
        Ok(answer) => answer.into(),
        Err(_) => Err(InjectError::HelperEnded(status.to_string())),
    }
}

/// The life of that process. `arguments` are those after [`ROLE`].
#[must_use]
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    // A VMM stands still when this process is killed at the wrong moment. It may not be allowed to say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    // Every thread that is started from here on, too.
    if let Err(error) = ptrace::block_signals() {
        eprintln!("memdexd inject: signals can't be blocked: {error}");
        return ExitCode::FAILURE;
    }
    let numbers: Option<Vec<u64>> = arguments.map(|number| number.parse().ok()).collect();
    let Some(&[pid, start_time, number, a, b, c]) = numbers.as_deref() else {
        eprintln!("memdexd inject: for the daemon itself; it wants six numbers");
        return ExitCode::from(2);
    };
    let result = u32::try_from(pid).map_err(|_| InjectError::Gone).and_then(|pid| {
        let opened = Process::open(ProcessId { pid, start_time });
        let process = opened.map_err(|error| {
            if is_gone(&error) { InjectError::Gone } else { InjectError::io("look at")(error) }
        })?;
        call_from_here(&process, Call { number: number.cast_signed(), arguments: [a, b, c] })
    });
    let told = serde_json::to_vec(&Answer::from(result))
        .and_then(|answer| io::stdout().write_all(&answer).map_err(serde_json::Error::io));
    // Nobody is there to hear it: the daemon has been killed.
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_arrives_as_it_was() {
        let outcomes = || -> Vec<Result<Returned, InjectError>> {
            let made = |value| Ok(Returned { tid: 7, value, stopped: Duration::from_micros(80) });
            vec![
                made(Ok(12)),
                made(Err(rustix::io::Errno::PERM)),
                Err(InjectError::Gone),
                Err(InjectError::Stopped),
                Err(InjectError::Traced(3)),
                Err(InjectError::Foreign),
                Err(InjectError::Seccomp(io::Error::from_raw_os_error(libc::EPERM))),
                Err(InjectError::Unresponsive(Duration::from_millis(200))),
                Err(InjectError::Stuck(Duration::from_secs(5))),
                Err(InjectError::Helper(io::Error::from_raw_os_error(libc::EAGAIN))),
                Err(InjectError::HelperEnded("signal: 9 (SIGKILL)".to_owned())),
                Err(InjectError::NoGate),
                Err(InjectError::io("follow")(io::Error::other("it did not make the call"))),
            ]
        };
        for (before, after) in outcomes().into_iter().zip(outcomes()) {
            let line = serde_json::to_vec(&Answer::from(before)).unwrap();
            let arrived: Result<Returned, InjectError> =
                serde_json::from_slice::<Answer>(&line).unwrap().into();
            assert_eq!(format!("{arrived:?}"), format!("{after:?}"));
        }
    }
}
