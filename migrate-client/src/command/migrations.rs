//! `memdex migrations`: what moves to and from a host, and what has moved lately; or one of them with its log.

use std::time::Duration;

use memdex_wire::migration::{Direction, Migration};

use super::{
    Context, Failure,
    migrate::report::{self, milliseconds},
};
use crate::{
    output::{Format, duration, lines, table, told},
    progress::{
        migration::{phase, words},
        say,
    },
};

/// Shows the migrations of the host, both ways; those that have ended stay for a while. With an id: that one, with its
/// figures and its log.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex migrations
  memdex migrations 7f3a90                       one of them: figures and log
  memdex migrations -o json | jq '.[] | select(.outcome == null) | {id, name, phase, progress}'
  memdex abort 7f3a90                            call it off")]
pub(super) struct Arguments {
    /// Id of a migration.
    id: Option<String>,
}

pub(super) async fn run(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    match arguments.id {
        Some(id) => {
            let migration = context.client.migration(&id).await?;
            match context.output.format() {
                Format::Json | Format::Jsonl => context.output.document(&migration)?,
                Format::Table => context.output.text(&details(&migration))?,
            }
        }
        None => {
            let all = context.client.migrations().await?;
            match context.output.format() {
                Format::Json => context.output.document(&all)?,
                Format::Jsonl => all.iter().try_for_each(|one| context.output.document(one))?,
                Format::Table if all.is_empty() => {
                    say("nothing moves, and nothing has moved lately: `memdex migrate --help` shows how");
                }
                Format::Table => context.output.text(&list(&all))?,
            }
        }
    }
    Ok(context.output.flush()?)
}

fn list(all: &[Migration]) -> String {
    let mut table = table(&["ID", "VM", "DIRECTION", "TO", "PHASE", ">TIME", "PROGRESS"]);
    for one in all {
        table.add_row([
            told(&one.id),
            told(&one.name),
            direction(one.direction).to_owned(),
            told(&one.to),
            phase(one.phase),
            duration(Duration::from_millis(one.total_ms)),
            progress(one),
        ]);
    }
    lines(&table)
}

fn details(one: &Migration) -> String {
    let log = report::log(one, 0);
    let mut text = format!(
        "{}, {}, {}\n{}{}",
        told(&one.id),
        direction(one.direction),
        progress(one),
        report::picture(one),
        if log.is_empty() { "" } else { "\n" },
    );
    for line in log {
        text += &line;
        text.push('\n');
    }
    text
}

fn progress(one: &Migration) -> String {
    match &one.reason {
        Some(reason) => told(reason),
        None if one.phase.is_end() => format!("downtime {}", milliseconds(one.blackout_ms)),
        None => words(one),
    }
}

const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Outgoing => "outgoing",
        Direction::Incoming => "incoming",
    }
}
