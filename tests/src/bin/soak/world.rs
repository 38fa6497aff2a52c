//! What all keepers share: the daemon, the counts, and whether it is over.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use memdex_tests::{Daemon, Scratch, daemon};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{
    arguments::Arguments,
    tally::{Report, Tally, grouped},
};

/// Share of a core, in percent, that the daemon's own audit gets here.
const AUDIT_PERCENT: &str = "5";
/// Longest time in which it is not noticed that it is over.
const STEP: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) scratch: &'a Scratch,
    /// Keepers read; who lets it end writes.
    daemon: RwLock<Daemon>,
    tally: Mutex<Tally>,
    /// Somebody does not want to wait for the end.
    leave: Arc<AtomicBool>,
    failed: AtomicBool,
    began: Instant,
    time: Duration,
}

impl<'a> World<'a> {
    /// Starts a daemon, and takes SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Panics
    /// If one of the two is not possible.
    pub(crate) fn new(scratch: &'a Scratch, arguments: &Arguments) -> Self {
        let leave = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&leave)).expect("signals can be caught");
        }
        let options = daemon::Options {
            arguments: ["--log", "info", "--audit-percent", AUDIT_PERCENT].map(str::to_owned).to_vec(),
            ..daemon::Options::default()
        };
        Self {
            scratch,
            daemon: RwLock::new(Daemon::start_with(scratch, "memdexd", &options)),
            tally: Mutex::default(),
            leave,
            failed: AtomicBool::new(false),
            began: Instant::now(),
            time: Duration::from_secs_f64(arguments.minutes * 60.0),
        }
    }

    /// The daemon, which does not end as long as this is held.
    pub(crate) fn daemon(&self) -> RwLockReadGuard<'_, Daemon> {
        self.daemon.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the daemon, in order or not, and starts it again.
    pub(crate) fn restart_daemon(&self, kill: bool) {
        let mut daemon = self.daemon.write().unwrap_or_else(PoisonError::into_inner);
        let mut tally = daemons_own(&daemon);
        if kill {
            tally.killed = 1;
            daemon.kill();
        } else {
            tally.stopped = 1;
            daemon.stop();
        }
        self.add(tally);
        daemon.restart(self.scratch);
    }

    /// Adds to the counts.
    pub(crate) fn add(&self, tally: Tally) {
        for example in &tally.examples {
            eprintln!("soak: WRONG: {example}");
        }
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).add(tally);
    }

    /// Something other than a wrong page: the run ends.
    pub(crate) fn fail(&self, why: &str) {
        eprintln!("soak: {why}");
        self.add(Tally { failures: vec![why.to_owned()], ..Tally::default() });
        self.failed.store(true, Relaxed);
    }

    /// Whether to come to an end.
    pub(crate) fn over(&self) -> bool {
        self.interrupted() || self.failed.load(Relaxed) || self.began.elapsed() >= self.time
    }

    /// Whether somebody does not want to wait for the end.
    pub(crate) fn interrupted(&self) -> bool {
        self.leave.load(Relaxed)
    }

    /// Sleeps, unless it is over.
    pub(crate) fn sleep(&self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time && !self.over() {
            std::thread::sleep(time.saturating_sub(begun.elapsed()).min(STEP));
        }
    }

    /// A line for whoever waits.
    pub(crate) fn progress(&self) -> String {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = self.began.elapsed().as_secs_f64();
        format!(
            "{seconds:.0} of {:.0} s: {} page checks ({:.0} a second), {} mismatches; {} guests, daemon ended {} times",
            self.time.as_secs_f64(),
            grouped(tally.checks()),
            tally.checks() as f64 / seconds,
            tally.mismatches,
            tally.guests,
            tally.stopped + tally.killed
        )
    }

    /// The outcome, once all keepers have ended.
    pub(crate) fn report(&self, arguments: &Arguments) -> Report {
        let took = self.began.elapsed();
        if !self.failed.load(Relaxed) {
            self.add(daemons_own(&self.daemon()));
        }
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report::new(arguments, took, tally)
    }

    /// Leaves the daemon's log where it can be found.
    pub(crate) fn keep_log(&self, seed: u64) {
        let file = std::env::temp_dir().join(format!("memdex-soak-{seed}.log"));
        match std::fs::copy(self.daemon().log_file(), &file) {
            Ok(_) => eprintln!("soak: the daemon's log is in {}", file.display()),
            Err(error) => eprintln!("soak: the daemon's log can't be kept in {}: {error}", file.display()),
        }
    }
}

/// What a daemon has counted of the VMs that are there now.
fn daemons_own(daemon: &Daemon) -> Tally {
    let mut tally = Tally::default();
    for vm in
        serde_json::from_slice::<Vec<serde_json::Value>>(&daemon.get("/v1/vms").body).unwrap_or_default()
    {
        let count = |field: &str| vm[field].as_u64().unwrap_or(0);
        tally.audited += count("audit_checked");
        tally.missed[0] += count("missed_by_ebpf");
        tally.missed[1] += count("missed_by_scan");
    }
    tally
}
