//! Progress of a migration, and the words for it: those of `virsh domjobinfo` and `query-migrate`.
//!
//! Never asks for a state: it is given each one.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use memdex_wire::{
    PAGE_SIZE,
    migration::{Migration, MigrationBytes, MigrationPages, Phase},
};
use migrate_client::printable;
use serde::Serialize;

use super::{BEAT, Face, Mode, say, style};
use crate::output::{bytes, duration};

/// Progress of one migration.
#[derive(Debug)]
pub(crate) struct MigrationProgress {
    command: &'static str,
    vm: String,
    told: Option<(Instant, Phase)>,
    drawn: bool,
    face: Face,
}

/// One line of `--progress json`.
#[derive(Serialize)]
struct Line<'a> {
    command: &'a str,
    vm: &'a str,
    id: &'a str,
    phase: Phase,
    rounds: u64,
    pages: &'a MigrationPages,
    bytes: &'a MigrationBytes,
    remaining_bytes: u64,
    rate: u64,
    dirty_rate: u64,
    expected_ms: Option<u64>,
    throttle_percent: u8,
    compression_level: u8,
    elapsed_ms: u64,
    blackout_ms: f64,
}

impl MigrationProgress {
    pub(crate) fn new(mode: Mode, command: &'static str, vm: &str) -> Self {
        let face = Face::new(mode, command, &printable(vm));
        if let Face::Bar(bar) = &face {
            bar.enable_steady_tick(BEAT);
        }
        Self { command, vm: vm.to_owned(), told: None, drawn: false, face }
    }

    /// Shows how it is now: the bar at once, a JSON line now and then, at every change of phase and at the end.
    pub(crate) fn show(&mut self, state: &Migration) {
        match &self.face {
            Face::Bar(bar) => {
                bar.set_message(words(state));
                if !self.drawn {
                    self.drawn = true;
                    let vm = format!("{} {}", self.command, printable(&self.vm));
                    bar.set_style(style(
                        "{spinner} {prefix} {wide_bar} {percent} % of memory, {elapsed}\n  {wide_msg}",
                    ));
                    bar.set_prefix(vm);
                }
                bar.set_length(state.bytes.total);
                bar.set_position(state.bytes.total.saturating_sub(state.progress.remaining_bytes));
            }
            Face::Json => {
                let news = self.told.is_none_or(|(at, phase)| at.elapsed() >= BEAT || phase != state.phase);
                if news || state.phase.is_end() {
                    self.tell(state);
                }
            }
            Face::Hidden => {}
        }
    }

    /// Says a sentence to the person at the terminal, above the bar.
    pub(crate) fn say(&self, sentence: &str) {
        match &self.face {
            Face::Bar(bar) => bar.suspend(|| say(sentence)),
            Face::Json | Face::Hidden => say(sentence),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
    }

    fn tell(&mut self, state: &Migration) {
        self.told = Some((Instant::now(), state.phase));
        let line = Line {
            command: self.command,
            vm: &self.vm,
            id: &state.id,
            phase: state.phase,
            rounds: state.rounds,
            pages: &state.pages,
            bytes: &state.bytes,
            remaining_bytes: state.progress.remaining_bytes,
            rate: state.progress.rate,
            dirty_rate: state.progress.dirty_rate,
            expected_ms: state.progress.expected_ms,
            throttle_percent: state.progress.throttle_percent,
            compression_level: state.progress.compression_level,
            elapsed_ms: state.total_ms,
            blackout_ms: state.blackout_ms,
        };
        if let Ok(line) = serde_json::to_string(&line) {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

impl Drop for MigrationProgress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How it goes, in a line.
pub(crate) fn words(state: &Migration) -> String {
    let now = &state.progress;
    let mut parts = vec![phase(state.phase)];
    if state.rounds > 0 {
        parts.push(format!("iteration {}", state.rounds));
    }
    if state.phase >= Phase::Copying {
        parts.push(format!("{} remaining", bytes(now.remaining_bytes)));
        // The end of the line may not fit the window: first what a person wants to know first.
        if let Some(left) = now.expected_ms {
            parts.push(format!("done in {}", duration(Duration::from_millis(left))));
        }
        parts.push(format!("{}/s", bytes(now.rate)));
        parts.push(format!("dirty rate {}/s", bytes(now.dirty_rate.saturating_mul(PAGE_SIZE as u64))));
    }
    if now.throttle_percent > 0 {
        parts.push(format!("guest held back {} %", now.throttle_percent));
    }
    parts.join(", ")
}

/// `device state`.
pub(crate) fn phase(phase: Phase) -> String {
    phase.name().replace('_', " ")
}
