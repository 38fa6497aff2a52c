//! A migration as the world sees it: phase, figures, log. Kept after the end.
//!
//! Owns the document of `/v1/migrations/{id}`. Whoever does the work tells it; it never does anything itself.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use memdex_wire::event::Event;
use memdex_wire::migration::{
    Direction, Migration, MigrationBytes, MigrationLogLine, MigrationPages, MigrationProgress, Outcome, Phase,
};

use crate::units::bytes;

/// Most lines of the log; the first ones and the latest are kept.
const LINES: usize = 200;

/// See the module.
#[derive(Debug)]
pub struct Record {
    id: String,
    direction: Direction,
    began: Instant,
    /// Bytes on the wire, both ways; counted by the connections.
    pub wire: std::sync::Arc<AtomicU64>,
    /// Pages that are zeros once all has been told.
    pub zero: AtomicU64,
    /// Pages taken from what was there.
    pub matched: AtomicU64,
    /// Pages sent.
    pub sent: AtomicU64,
    /// Rounds.
    pub rounds: AtomicU64,
    /// Who is told of every phase.
    host: Option<std::sync::Arc<crate::host::Shared>>,
    state: Mutex<State>,
}

/// What a migration is about.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// Id of the VM on this host.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// The destination.
    pub to: String,
    /// The VM that waits there.
    pub dest_vm: String,
}

#[derive(Debug)]
struct State {
    subject: Subject,
    total_pages: u64,
    phase: Phase,
    outcome: Option<(Outcome, String)>,
    ended: Option<Instant>,
    blackout_began: Option<Instant>,
    blackout: Duration,
    progress: MigrationProgress,
    log: Vec<MigrationLogLine>,
}

impl Record {
    /// The record of a migration that begins now.
    #[must_use]
    pub fn new(id: String, direction: Direction, subject: Subject) -> Self {
        Self {
            host: None,
            id,
            direction,
            began: Instant::now(),
            wire: std::sync::Arc::default(),
            zero: AtomicU64::new(0),
            matched: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            state: Mutex::new(State {
                subject,
                total_pages: 0,
                phase: Phase::Queued,
                outcome: None,
                ended: None,
                blackout_began: None,
                blackout: Duration::ZERO,
                progress: MigrationProgress::default(),
                log: Vec::new(),
            }),
        }
    }

    /// Lets everybody who listens to this host's events know of every phase.
    #[must_use]
    pub(crate) fn announced(mut self, host: &std::sync::Arc<crate::host::Shared>) -> Self {
        self.host = Some(std::sync::Arc::clone(host));
        self
    }

    fn announce(&self, vm: String, phase: Phase) {
        if let Some(host) = &self.host {
            let (migration, direction) = (self.id.clone(), self.direction);
            host.announce(Event::MigrationChanged { migration, vm, direction, phase });
        }
    }

    /// Names the migration on both hosts.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Which end of it this host is.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// When it ended.
    #[must_use]
    pub fn ended(&self) -> Option<Instant> {
        self.lock().ended
    }

    /// Says what it is about, once that is known.
    pub fn set_subject(&self, subject: Subject, total_pages: u64) {
        let mut state = self.lock();
        (state.subject, state.total_pages) = (subject, total_pages);
    }

    /// The next phase begins.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        if state.outcome.is_some() || state.phase == phase {
            return;
        }
        state.phase = phase;
        let (name, vm) = (state.subject.name.clone(), state.subject.vm.clone());
        drop(state);
        self.announce(vm, phase);
        tracing::info!(migration = self.id, vm = name, phase = phase.name(), direction = ?self.direction, "migration");
    }

    /// The guest stands still from now on.
    pub fn blackout_begins(&self) {
        self.lock().blackout_began = Some(Instant::now());
    }

    /// The guest runs again, here or there.
    pub fn blackout_ends(&self) {
        let mut state = self.lock();
        if let Some(began) = state.blackout_began.take() {
            state.blackout = began.elapsed();
        }
    }

    /// Writes a line into the log, for people.
    pub fn say(&self, text: impl Into<String>) {
        // Some of it is a peer's.
        let text = migrate_client::printable(&text.into());
        let mut state = self.lock();
        tracing::info!(migration = self.id, vm = state.subject.name, phase = state.phase.name(), "{text}");
        let line =
            MigrationLogLine { at_ms: self.began.elapsed().as_millis() as u64, phase: state.phase, text };
        if state.log.len() >= LINES {
            // How it began stays.
            state.log.remove(LINES / 2);
        }
        state.log.push(line);
    }

    /// How it goes.
    pub fn set_progress(&self, set: impl FnOnce(&mut MigrationProgress)) {
        set(&mut self.lock().progress);
    }

    /// It is over. Only the first word counts.
    pub fn end(&self, outcome: Outcome, reason: impl Into<String>) {
        let reason = reason.into();
        self.blackout_ends();
        {
            let state = self.lock();
            if state.outcome.is_some() {
                return;
            }
        }
        self.say(match outcome {
            Outcome::Completed => reason.clone(),
            Outcome::Aborted => format!("aborted: {reason}"),
            Outcome::Failed => format!("failed: {reason}"),
        });
        let mut state = self.lock();
        state.phase = match outcome {
            Outcome::Completed => Phase::Completed,
            Outcome::Aborted => Phase::Aborted,
            Outcome::Failed => Phase::Failed,
        };
        state.ended = Some(Instant::now());
        state.progress.throttle_percent = 0;
        state.progress.expected_ms = None;
        state.outcome = Some((outcome, migrate_client::printable(&reason)));
        let (vm, phase) = (state.subject.vm.clone(), state.phase);
        drop(state);
        self.announce(vm, phase);
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> Migration {
        let state = self.lock();
        let now = state.ended.unwrap_or_else(Instant::now);
        let blackout = state.blackout_began.map_or(state.blackout, |began| began.elapsed());
        let (zero, matched, sent) =
            (self.zero.load(Relaxed), self.matched.load(Relaxed), self.sent.load(Relaxed));
        let total = state.total_pages;
        Migration {
            id: self.id.clone(),
            direction: self.direction,
            vm: state.subject.vm.clone(),
            name: state.subject.name.clone(),
            to: state.subject.to.clone(),
            dest_vm: state.subject.dest_vm.clone(),
            phase: state.phase,
            outcome: state.outcome.as_ref().map(|(outcome, _)| *outcome),
            reason: state.outcome.as_ref().map(|(_, reason)| reason.clone()),
            total_ms: now.duration_since(self.began).as_millis() as u64,
            blackout_ms: (blackout.as_secs_f64() * 1e5).round() / 100.0,
            rounds: self.rounds.load(Relaxed),
            pages: MigrationPages { total, zero, matched, sent },
            bytes: MigrationBytes {
                total: bytes(total),
                zero: bytes(zero),
                matched: bytes(matched),
                sent: bytes(sent),
                wire: self.wire.load(Relaxed),
            },
            progress: state.progress,
            log: state.log.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
