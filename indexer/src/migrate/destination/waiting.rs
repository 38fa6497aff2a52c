//! The VMM that waits for the guest: what is changed in it, in which order, and how it is left.
//!
//! Owns its monitor, its guard and its entry in the journal. What is about to be done is in the guard's orders and in the journal before it is done.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::process::{Signal, pidfd_send_signal};
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    time::{sleep, timeout},
};

use super::session::Failure;
use crate::{
    migrate::{
        device::Unpacker,
        guard::{Guard, Orders, Step},
        journal::{Decision, Entry, Journal},
        link::SILENCE,
        monitor::Monitor,
        qmp::QmpError,
    },
    vm::{descriptor::ProcessId, monitors::starts_paused},
    watch::process::Process,
};

/// Longest wait for QEMU to load its device state.
const LOADING: Duration = Duration::from_secs(30);
/// How long is tried to get the guest to run.
const RUNNING: Duration = Duration::from_secs(10);
/// How long a VMM that is told to end may take.
const ENDING: Duration = Duration::from_secs(5);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// What is said when it has ended by itself.
pub(super) const GONE: &str = "the waiting VM at the destination has ended";

/// See the module.
pub(super) struct Waiting {
    name: String,
    process: Process,
    monitor: Monitor,
    guard: Guard,
    journal: Journal,
    entry: Entry,
    /// Our end of what QEMU reads its device state from, and the stream that it comes as.
    device: Option<(UnixStream, Unpacker)>,
    loaded: bool,
    /// What gives it back the settings it was found with.
    undo: Vec<Step>,
}

impl Waiting {
    /// Begins to change things in it.
    pub(super) async fn begin(
        id: &str,
        name: &str,
        process: ProcessId,
        mut monitor: Monitor,
        journal: Journal,
    ) -> Result<Self, Failure> {
        let mut entry = Entry {
            id: id.to_owned(),
            name: name.to_owned(),
            process: (process.pid, process.start_time),
            monitor: monitor.path().to_owned(),
            decision: Decision::Receiving,
            run: true,
            undo: Vec::new(),
        };
        let process = Process::open(process).map_err(|_| GONE.to_owned())?;
        let mut undo = monitor.settings_to_undo().await.map_err(|error| error.to_string())?;
        if !starts_paused(process.id()) {
            // As it waits, this only says that the next guest to come may run at once, as the one who started it wanted.
            undo.push(Step::new("cont"));
        }
        entry.undo.clone_from(&undo);
        let orders = Orders { vm: name.to_owned(), steps: undo.clone(), ..Orders::default() };
        let guard = Guard::start(monitor.share().map_err(|error| no_guard(&error))?, &orders)
            .map_err(|error| no_guard(&error))?;
        let made = match journal.write(&entry) {
            Ok(()) => monitor.set_up_destination().await.map_err(|error| error.to_string()),
            Err(error) => Err(no_journal(&error)),
        };
        if let Err(why) = made {
            journal.remove(id);
            // Some of it may have been done: the guard takes that back.
            drop(guard);
            return Err(why);
        }
        Ok(Self {
            name: name.to_owned(),
            process,
            monitor,
            guard,
            journal,
            entry,
            device: None,
            loaded: false,
            undo,
        })
    }

    /// Whether it still lives.
    pub(super) fn alive(&self) -> bool {
        self.process.alive()
    }

    /// Whether device state has been handed in, so that it cannot wait for another guest any more.
    pub(super) fn has_begun(&self) -> bool {
        self.device.is_some()
    }

    /// Lets QEMU begin to read device state.
    pub(super) async fn begin_device(&mut self) -> Result<(), Failure> {
        // A QEMU that has begun to read device state cannot wait for another one.
        self.order(vec![Step::new("quit")])?;
        self.note(Decision::Loading, true)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
        ours.set_nonblocking(true).map_err(|error| error.to_string())?;
        let ours = UnixStream::from_std(ours).map_err(|error| error.to_string())?;
        self.device = Some((ours, Unpacker::new().map_err(|error| error.to_string())?));
        self.monitor.receive_state(theirs.as_fd()).await.map_err(|error| error.to_string())
    }

    /// Hands in a piece of device state.
    pub(super) async fn device(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let (device, unpacker) = self.device.as_mut().ok_or("device state comes before it was announced")?;
        let bytes = unpacker.unpack(piece).map_err(|_| "the source sends damaged device state".to_owned())?;
        match timeout(SILENCE, device.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                Err(format!("QEMU does not take its device state ({error}): see its standard error"))
            }
            Err(_) => Err("QEMU does not take its device state".to_owned()),
        }
    }

    /// That was all. Returns when the device state is loaded and the guest could run.
    pub(super) async fn end_device(&mut self) -> Result<(), Failure> {
        let (device, _) = self.device.as_mut().ok_or("device state ends before it was announced")?;
        device.shutdown().await.map_err(|error| error.to_string())?;
        self.monitor.migration_complete(Instant::now() + LOADING).await?;
        let state = self.monitor.status().await.map_err(|error| error.to_string())?;
        if !matches!(state.as_str(), "paused" | "prelaunch" | "suspended" | "shutdown") {
            return Err(format!("QEMU is {state} after its device state was loaded, not paused"));
        }
        self.loaded = true;
        Ok(())
    }

    /// Whether the guest could run.
    pub(super) fn loaded(&self) -> bool {
        self.loaded
    }

    /// Lets the guest run, or leaves it paused if it was. It has been decided that nobody else will.
    ///
    /// # Errors
    /// If it has not run and never will: see [`Waiting::discard`].
    pub(super) async fn run(&mut self, run: bool) -> Result<(), Failure> {
        // In this order: at any instant the journal says "committed" before anything could let the guest run, and nothing ends a VMM that it calls
        // committed.
        self.order(Vec::new())?;
        self.note(Decision::Committed, run)?;
        let settings = self.undo.iter().filter(|step| step.command != "cont").cloned();
        let let_run = run.then(|| Step::run(&["paused", "prelaunch", "inmigrate"]));
        let steps = let_run.into_iter().chain(settings).collect();
        let ran = Entry { decision: Decision::Completed, ..self.entry.clone() };
        let ran = Some((self.journal.clone(), ran));
        // Nothing turns back from here on because the guard has gone: if this daemon goes too, the next one lets the guest run.
        let _ = self.guard.order(&Orders { vm: self.name.clone(), steps, ran, ..Orders::default() });
        if !run {
            return Ok(());
        }
        let begun = Instant::now();
        let (mut ran, mut unsure) = (false, false);
        let why = loop {
            let told = self.monitor.cont().await;
            ran |= told.is_ok();
            match self.monitor.status().await {
                Ok(state) if state == "running" => return Ok(()),
                // It ran, and has ended or stopped again since: that is the guest's own business.
                _ if ran => return Ok(()),
                _ if !self.alive() => break GONE.to_owned(),
                _ if begun.elapsed() > RUNNING => {
                    // One that has not said no may act on what it was told at any time: it is not asked to end.
                    unsure = !matches!(told, Err(QmpError::Refused { .. }));
                    let why = told.err().map_or_else(String::new, |error| format!(": {error}"));
                    break format!("the guest could not be let run here{why}");
                }
                _ => sleep(PAUSE).await,
            }
        };
        // From here on it never will, also if this daemon is killed before its VMM has ended: the next one ends it first, and only then says so to the source. In this order:
        // nothing ends a VMM that the journal calls committed. (A guard that has gone does nothing either.)
        let _ = self.order(Vec::new());
        while let Err(error) = self.note(Decision::Ending, run) {
            tracing::error!(vm = self.name, %error, "the guest could not be let run, and that cannot be written down: nothing else is done before it is");
            sleep(RUNNING).await;
            if !self.alive() {
                break;
            }
        }
        if unsure {
            let _ = pidfd_send_signal(self.process.pidfd(), Signal::KILL);
        }
        let _ = self.order(vec![Step::new("quit")]);
        Err(why)
    }

    /// Whether the guest was let run.
    pub(super) fn runs(&self) -> bool {
        self.entry.run
    }

    /// The end: it is left as it is, with the settings it was found with.
    pub(super) async fn release(mut self, decision: Decision) {
        // QEMU's next migration is not ours to shape. Whether the guest runs is settled by now.
        let mut undone = true;
        for step in self.undo.iter().filter(|step| step.command != "cont" || decision == Decision::GivenUp) {
            undone &= self.monitor.tell_step(step).await.is_ok() || !self.alive();
        }
        // Only now: who comes after leaves it alone from here on.
        let run = self.entry.run;
        if decision == Decision::GivenUp && !self.loaded {
            // The source hands over only what was loaded: it will not ask.
            self.journal.remove(&self.entry.id);
        } else if self.note(decision, run).is_err() {
            tracing::warn!(vm = self.name, "the journal of migrations cannot be written");
        }
        if undone {
            self.guard.release();
        } else {
            tracing::warn!(
                vm = self.name,
                "QEMU's settings are not what they were yet: a guard goes on trying"
            );
            let steps = self.undo.iter().filter(|step| step.command != "cont").cloned().collect();
            let _ = self.guard.order(&Orders { vm: self.name.clone(), steps, ..Orders::default() });
            drop(self.guard);
        }
    }

    /// Ends it. When this returns it is certain not to run.
    pub(super) async fn discard(mut self) -> Self {
        let _ = self.monitor.quit().await;
        let begun = Instant::now();
        while self.alive() {
            if begun.elapsed() > ENDING {
                tracing::warn!(vm = self.name, "the waiting VMM does not end by itself: it is killed");
                let _ = pidfd_send_signal(self.process.pidfd(), Signal::KILL);
                // A disk that hangs may keep it for long, and may be written by it until it has ended: nobody is told before.
                sleep(ENDING).await;
            }
            sleep(PAUSE).await;
        }
        self
    }

    fn order(&mut self, steps: Vec<Step>) -> Result<(), Failure> {
        let orders = Orders { vm: self.name.clone(), steps, ..Orders::default() };
        self.guard.order(&orders).map_err(|error| no_guard(&error))
    }

    fn note(&mut self, decision: Decision, run: bool) -> Result<(), Failure> {
        (self.entry.decision, self.entry.run) = (decision, run);
        self.journal.write(&self.entry).map_err(|error| no_journal(&error))
    }
}

fn no_guard(error: &io::Error) -> Failure {
    format!("there can be no guard for the waiting VM ({error}), and without one nothing is changed in it")
}

fn no_journal(error: &io::Error) -> Failure {
    format!("the journal of migrations cannot be written ({error}), and without it nothing is changed")
}
