//! What goes to stderr while work is under way: a bar for people, one JSON object a line for programs, or nothing.
//!
//! Never writes to stdout, and draws nothing if stderr is no terminal. That of a migration is in [`migration`].

pub(crate) mod migration;

use std::{
    future::Future,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use migrate_client::printable;
use serde::Serialize;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// A bar if stderr is a terminal, else nothing.
    Auto,
    /// One JSON object a line.
    Json,
    /// Nothing.
    None,
}

/// Time between two signs of life.
const BEAT: Duration = Duration::from_millis(250);

/// Progress of one command.
#[derive(Debug)]
pub(crate) struct Progress {
    command: &'static str,
    vm: String,
    started: Instant,
    told: Option<Instant>,
    state: Option<(u64, u64)>,
    face: Face,
}

#[derive(Debug)]
enum Face {
    Bar(ProgressBar),
    Json,
    Hidden,
}

impl Face {
    /// `vm` is printable already.
    fn new(mode: Mode, command: &str, vm: &str) -> Self {
        match mode {
            Mode::Json => Self::Json,
            Mode::Auto if io::stderr().is_terminal() => Self::Bar(spinner(command, vm)),
            Mode::Auto | Mode::None => Self::Hidden,
        }
    }
}

/// One line of `--progress json`. `done` and `total` are pages; both are left out where nobody knows them.
#[derive(Serialize)]
struct Line<'a> {
    command: &'a str,
    vm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    elapsed_ms: u64,
}

impl Progress {
    pub(crate) fn new(mode: Mode, command: &'static str, vm: &str) -> Self {
        let face = Face::new(mode, command, &printable(vm));
        Self { command, vm: vm.to_owned(), started: Instant::now(), told: None, state: None, face }
    }

    /// Hides the bar: stdout is the same terminal and about to be filled with lines.
    pub(crate) fn make_way(&mut self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
            self.face = Face::Hidden;
        }
    }

    /// `done` of `total` pages.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        if let (Face::Bar(bar), None) = (&self.face, self.state) {
            bar.set_style(style("{spinner} {msg} {wide_bar} {percent} % of {human_len} pages, {elapsed}"));
        }
        self.state = Some((done, total));
        match &self.face {
            Face::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Face::Json if self.told.is_none_or(|told| told.elapsed() >= BEAT) => self.tell(),
            Face::Json | Face::Hidden => {}
        }
    }

    /// Runs `work` with a sign of life now and then.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut beat = tokio::time::interval(BEAT);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                _ = beat.tick() => match &self.face {
                    Face::Bar(bar) => bar.tick(),
                    Face::Json => self.tell(),
                    Face::Hidden => {}
                },
            }
        }
    }

    /// Takes the bar away; the last JSON line is always written.
    pub(crate) fn finish(mut self) {
        match &self.face {
            Face::Bar(bar) => bar.finish_and_clear(),
            Face::Json => self.tell(),
            Face::Hidden => {}
        }
    }

    fn tell(&mut self) {
        self.told = Some(Instant::now());
        let line = Line {
            command: self.command,
            vm: &self.vm,
            done: self.state.map(|(done, _)| done),
            total: self.state.map(|(_, total)| total),
            elapsed_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        if let Ok(line) = serde_json::to_string(&line) {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
    }
}

/// Says a sentence to the person at the terminal, beside the data.
pub(crate) fn say(sentence: &str) {
    let _ = writeln!(io::stderr(), "{sentence}");
}

fn spinner(command: &str, vm: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style("{spinner} {msg} {elapsed}"));
    bar.set_message(format!("{command} {vm}"));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▉▊▋▌▍▎▏ ")
}
