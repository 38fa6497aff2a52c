//! `memdex top`: live view of all VMs; with no terminal a line a second for each VM.
//!
//! Owns the beat and the asking. How a frame looks is in [`frame`], the terminal's state in [`screen`].

mod frame;
mod screen;

use std::{
    io::{self, IsTerminal},
    time::{Duration, SystemTime},
};

use memdex_wire::vm::VmInfo;
use migrate_client::ClientError;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

pub(super) use self::screen::restore as restore_terminal;
use self::screen::{Key, Screen};
use super::{Context, Failure};
use crate::{output::Format, progress::say};

/// Shows all VMs, renewed every second; q or Ctrl-C leaves. Without a terminal, or with -o jsonl, it prints a line for
/// each VM every second until it is interrupted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex top
  memdex top -o jsonl | jq -c '{name, stale: .pages.stale, oldest_mark_ms}'
  memdex top --count 1 | cat                     one look, as lines

Columns:
  PAGES        all of its memory as a bar: current, zero, absent (never touched, or given back), stale
  OLDEST MARK  how long the oldest write that has been noticed has waited to be read
  CHANGES      generations of the map since the look before
  MISSED       pages that were found written without an eBPF mark")]
pub(super) struct Arguments {
    /// Time between two looks, such as 500ms or 5s.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Leave after this many looks.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time < Duration::from_millis(100) => {
            Err("look at most ten times a second: 100ms".to_owned())
        }
        Ok(time) if time > Duration::from_secs(86_400) => Err("look at least once a day: 1d".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it like 500ms or 5s")),
    }
}

pub(super) async fn run(context: Context, arguments: Arguments) -> Result<(), Failure> {
    match context.output.format() {
        Format::Json => {
            Err(Failure::Usage("a live view has no end, so it is no JSON document: use -o jsonl".to_owned()))
        }
        Format::Jsonl => lines(context, arguments).await,
        Format::Table if io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb() => {
            live(context, arguments).await
        }
        Format::Table => lines(context, arguments).await,
    }
}

/// A terminal that cannot move its cursor gets lines.
fn dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

fn beat(arguments: &Arguments) -> tokio::time::Interval {
    let mut beat = tokio::time::interval(arguments.interval);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// A line of `-o jsonl`.
#[derive(Serialize)]
struct Sample<'a> {
    /// Milliseconds since 1970.
    at_ms: u64,
    #[serde(flatten)]
    vm: &'a VmInfo,
}

async fn lines(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    let (mut beat, mut left) = (beat(&arguments), arguments.count);
    let mut before = None;
    while left != Some(0) {
        beat.tick().await;
        let vms = match context.client.vms().await {
            Ok(vms) => vms,
            // A host that is restarted should not end a recording that ran for hours; one that was never there should.
            Err(error) if before.is_some() && error.is_retryable() => {
                say(&format!("memdex: {error}"));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let at = SystemTime::now();
        let at_ms = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        for vm in &vms {
            match context.output.format() {
                Format::Jsonl => context.output.document(&Sample { at_ms, vm })?,
                _ => context.output.line(&frame::line(at, vm))?,
            }
        }
        context.output.flush()?;
        before = Some(());
        left = left.map(|left| left - 1);
    }
    Ok(())
}

async fn live(context: Context, arguments: Arguments) -> Result<(), Failure> {
    // Before the screen is taken: whoever cannot reach the host wants to read why.
    let mut answer: Result<Vec<VmInfo>, ClientError> = Ok(context.client.vms().await?);
    let mut shown = frame::Frame::default();
    let (mut beat, mut left) = (beat(&arguments), arguments.count);
    beat.tick().await;
    let mut screen = Screen::take()?;
    loop {
        shown.update(answer);
        screen.draw(&shown.render(context.client.host(), arguments.interval))?;
        left = left.map(|left| left.saturating_sub(1));
        // Redraws at once if the window changes its size, at the next beat otherwise.
        loop {
            tokio::select! {
                _ = beat.tick() => break,
                key = screen.key() => match key {
                    Key::Leave => return Ok(()),
                    Key::Interrupt => return Err(Failure::Interrupted),
                    Key::Redraw => screen.draw(&shown.render(context.client.host(), arguments.interval))?,
                },
            }
        }
        if left == Some(0) {
            return Ok(());
        }
        answer = tokio::select! {
            answer = context.client.vms() => answer,
            key = screen.key_that_leaves() => return match key {
                Key::Interrupt => Err(Failure::Interrupted),
                Key::Leave | Key::Redraw => Ok(()),
            },
        };
    }
}
