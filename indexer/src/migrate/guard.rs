//! The guard: a process of its own that leaves a VM as it has to be left if the daemon dies in the midst of a migration.
//!
//! # Why a process
//!
//! Between `stop` at the source and `cont` at the destination the guest stands still, and for some of that time only the daemon knows what to do next. A
//! daemon can be killed at any instant, and then nobody would let the guest run again until somebody noticed. So before it changes anything
//! in a VMM, the daemon starts `memdexd guard`, hands it a second descriptor of its connection to the monitor, and tells it over a socket what has to
//! be done if that socket ever ends without a word: the *orders*. Each change is ordered to be undone *before* it is made. While the daemon lives, the guard
//! does nothing at all. It is not asked, so it cannot slow anything down.
//!
//! QEMU serves one client a monitor. The guard's descriptor is the daemon's own connection, not a second one, so it need not wait for
//! QEMU to notice that the daemon has gone.
//!
//! Signals do not end it: what ends a whole service at once (`systemctl stop`) must not end the guard before the daemon, which calls
//! the migration off and releases it.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::unix::{SignalKind, signal},
};

use super::{
    journal::{Entry, Journal},
    monitor::CANCELLED,
    qmp::{Qmp, QmpError},
    resolve::{Destination, Verdict, who_runs},
};

/// The word on the command line of `memdexd` that makes it a guard.
pub const ROLE: &str = "guard";
/// After this time a guard says that a guest does not run yet, and tries less often. It never gives up while QEMU lives: a guest that was stopped for us has nobody else, and
/// a disk that hangs (which keeps QEMU from answering) may come back after an hour.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two tries, before that and after it.
const PAUSE: Duration = Duration::from_millis(100);
const LONG_PAUSE: Duration = Duration::from_secs(5);

/// What is to be done if the daemon dies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// Which VM, for the log.
    pub vm: String,
    /// Ask first who runs the guest, and go on only if it is not the destination.
    pub ask: Option<Destination>,
    /// What to tell QEMU, in order. A step that fails does not keep the next one from being tried.
    pub steps: Vec<Step>,
    /// What to tell it instead if the destination runs the guest.
    pub gone: Vec<Step>,
    /// To be written down once the guest was let run, so that nobody lets it run a second time who comes after: it may have been paused by then.
    #[serde(default)]
    pub ran: Option<(Journal, Entry)>,
}

/// One thing to tell QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The QMP command.
    pub command: String,
    /// Its arguments.
    pub arguments: Value,
    /// Tell it again and again until this is the run state.
    pub until: Option<String>,
    /// But only while it is one of these: in any other, somebody else has decided what becomes of the guest.
    #[serde(default)]
    pub while_in: Vec<String>,
}

impl Step {
    /// A command without arguments.
    #[must_use]
    pub fn new(command: &str) -> Self {
        Self::with((command, Value::Object(serde_json::Map::new())))
    }

    /// A command with arguments.
    #[must_use]
    pub fn with((command, arguments): (&str, Value)) -> Self {
        Self { command: command.to_owned(), arguments, until: None, while_in: Vec::new() }
    }

    /// Lets the guest run, as long as it is in one of these states.
    #[must_use]
    pub fn run(while_in: &[&str]) -> Self {
        let while_in = while_in.iter().map(|state| (*state).to_owned()).collect();
        Self { until: Some("running".to_owned()), while_in, ..Self::new("cont") }
    }
}

/// What the daemon says to its guard, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Orders(Box<Orders>),
    /// All is well: end without doing anything.
    Release,
}

/// The daemon's hold on its guard.
#[derive(Debug)]
pub struct Guard {
    socket: UnixStream,
    child: Option<Child>,
}

impl Guard {
    /// Starts a guard with its first orders. `monitor` is a descriptor of the connection to QEMU's monitor.
    ///
    /// # Errors
    /// If there can be no further process. Then nothing may be changed in the VMM.
    pub fn start(monitor: OwnedFd, orders: &Orders) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg(ROLE)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(monitor))
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut guard = Self { socket, child: Some(child) };
        guard.order(orders)?;
        Ok(guard)
    }

    /// Replaces the orders. When this returns they are certain to be read, even if the daemon dies at once.
    ///
    /// # Errors
    /// If the guard has ended: then nothing more may be changed.
    pub fn order(&mut self, orders: &Orders) -> io::Result<()> {
        self.say(&Word::Orders(Box::new(orders.clone())))
    }

    fn say(&mut self, word: &Word) -> io::Result<()> {
        let mut line = serde_json::to_vec(word)?;
        line.push(b'\n');
        self.socket.write_all(&line)
    }

    /// Ends the guard: the VM is as it should be.
    pub fn release(mut self) {
        let _ = self.say(&Word::Release);
        if let Some(mut child) = self.child.take() {
            // It ends at once; who waits for it has nothing else to do.
            std::thread::spawn(move || drop(child.wait()));
        }
    }
}

impl Drop for Guard {
    /// Not released: it acts. The process is waited for so that it does not stay as a zombie.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || drop(child.wait()));
        }
    }
}

/// The guard's own life: standard input is the socket to the daemon, standard output the monitor.
#[must_use]
pub fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("memdexd guard: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(stand()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the guard of a migration could not do its work");
            ExitCode::FAILURE
        }
    }
}

async fn stand() -> io::Result<()> {
    // It needs next to nothing, and when memory is short a guest's way back is the last thing to be given up. It may not be allowed to.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    // Handlers that do nothing; they go with the process.
    let _deaf = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .into_iter()
        .map(signal)
        .collect::<io::Result<Vec<_>>>()?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let mut words = BufReader::new(tokio::net::UnixStream::from_std(socket)?).lines();
    let mut orders = Orders::default();
    loop {
        // The end, or an error such as a reset: the daemon is no more.
        let Ok(Some(line)) = words.next_line().await else { break };
        match serde_json::from_str(&line)? {
            Word::Orders(new) => orders = *new,
            Word::Release => return Ok(()),
        }
    }
    if orders.steps.is_empty() && orders.ask.is_none() {
        return Ok(());
    }
    tracing::warn!(vm = orders.vm, "the daemon has died in the midst of a migration: its guard takes over");
    let qmp = Qmp::adopt(io::stdout().as_fd().try_clone_to_owned()?)?;
    carry_out(qmp, &orders).await;
    Ok(())
}

async fn carry_out(mut qmp: Qmp, orders: &Orders) {
    let mut steps = &orders.steps;
    if let Some(destination) = &orders.ask {
        match who_runs(destination, |words| tracing::warn!(vm = orders.vm, "{words}")).await {
            Verdict::Destination => {
                tracing::info!(vm = orders.vm, "the guest runs at the destination");
                steps = &orders.gone;
            }
            Verdict::Source => {
                tracing::info!(vm = orders.vm, "the destination has given up: the guest runs on here");
            }
        }
    }
    for step in steps {
        match &step.until {
            Some(wanted) => {
                let is_so = tell_until(&mut qmp, &orders.vm, step, wanted).await;
                if let Some((journal, entry)) = orders.ran.as_ref().filter(|_| is_so) {
                    write_down(journal, entry);
                }
            }
            None => tell(&mut qmp, &orders.vm, step).await,
        }
    }
}

async fn tell(qmp: &mut Qmp, vm: &str, step: &Step) {
    let begun = Instant::now();
    loop {
        let Err(error) = qmp.execute(&step.command, step.arguments.clone()).await else { return };
        tracing::info!(vm, command = step.command, %error, "guard");
        // As long as a migration of QEMU's own that was called off has not ended, some things are refused.
        if !matches!(error, QmpError::Refused { .. }) || begun.elapsed() > CANCELLED {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn write_down(journal: &Journal, entry: &Entry) {
    // If it is there no more, whoever needed it has heard.
    if journal.has(&entry.id)
        && let Err(error) = journal.write(entry)
    {
        tracing::warn!(vm = entry.name, %error, "guard: the journal of migrations cannot be written");
    }
}

/// Whether it was brought about.
async fn tell_until(qmp: &mut Qmp, vm: &str, step: &Step, wanted: &str) -> bool {
    let (begun, mut said) = (Instant::now(), false);
    loop {
        let state = qmp.execute("query-status", serde_json::json!({})).await;
        match state.as_ref().map(|state| state["status"].as_str().unwrap_or("unknown")) {
            Ok(state) if state == wanted => {
                tracing::info!(vm, state, "guard: done");
                return true;
            }
            Ok(state) if !step.while_in.iter().any(|expected| expected == state) => {
                tracing::error!(
                    vm,
                    state,
                    wanted,
                    "guard: somebody else has decided what becomes of the guest"
                );
                return false;
            }
            Err(error @ QmpError::Lost(_)) => {
                tracing::error!(vm, wanted, %error, "guard: the VM has ended");
                return false;
            }
            // It does not answer. What it is told now it would do whenever it can, whatever state it is in by then.
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(vm, wanted, %error, "guard: not yet, and it goes on trying for as long as the VM is there");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Ok(_) => {}
        }
        let told = qmp.execute(&step.command, step.arguments.clone()).await;
        if let Err(error) = &told
            && !said
        {
            tracing::info!(vm, command = step.command, %error, "guard");
        }
        let late = begun.elapsed() > PATIENCE;
        if late && !std::mem::replace(&mut said, true) {
            tracing::error!(
                vm,
                wanted,
                "guard: not yet, and it goes on trying for as long as the VM is there"
            );
        }
        // As soon as it is there the next look says so.
        let pause = if told.is_ok() {
            Duration::ZERO
        } else if late {
            LONG_PAUSE
        } else {
            PAUSE
        };
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
    }
}

#[cfg(test)]
mod tests;
