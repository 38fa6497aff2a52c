//! What is said of a migration that has ended: figures for people, the contract's document for programs, and the log of
//! one that did not work.

use std::time::Duration;

use memdex_wire::migration::{Migration, MigrationBytes, MigrationPages, Outcome, Phase};
use serde::Serialize;

use crate::{
    command::Failure,
    output::{Format, Output, bytes, count, duration, lines, percent, table, told},
    progress::{migration::phase, say},
};

/// Lines of the log that are shown, the last ones.
const LOG_LINES: usize = 20;

/// The document that ends `memdex migrate -o json`.
#[derive(Serialize)]
struct Document<'a> {
    id: &'a str,
    vm: &'a str,
    name: &'a str,
    to: &'a str,
    dest_vm: &'a str,
    outcome: Outcome,
    reason: Option<&'a str>,
    total_ms: u64,
    blackout_ms: f64,
    rounds: u64,
    bytes: &'a MigrationBytes,
    pages: &'a MigrationPages,
}

/// How it ended. The phase tells as well, should a host leave out the outcome.
pub(in crate::command) fn outcome(ended: &Migration) -> Outcome {
    ended.outcome.unwrap_or(match ended.phase {
        Phase::Completed => Outcome::Completed,
        Phase::Aborted => Outcome::Aborted,
        _ => Outcome::Failed,
    })
}

/// The failure that goes with it; none if the guest runs at the destination.
pub(in crate::command) fn failure(ended: &Migration) -> Option<Failure> {
    let name = told(&ended.name);
    let reason = told(ended.reason.as_deref().unwrap_or("the host does not say why"));
    match outcome(ended) {
        Outcome::Completed => None,
        Outcome::Aborted => Some(Failure::Failed(format!(
            "the migration of {name} was called off, and the guest runs where it was: {reason}"
        ))),
        Outcome::Failed => Some(Failure::Failed(format!("the migration of {name} failed: {reason}"))),
    }
}

/// Prints it to stdout, and the log of one that did not work to stderr.
pub(in crate::command) fn print(output: &mut Output, ended: &Migration) -> Result<(), Failure> {
    match output.format() {
        Format::Json | Format::Jsonl => output.document(&Document {
            id: &ended.id,
            vm: &ended.vm,
            name: &ended.name,
            to: &ended.to,
            dest_vm: &ended.dest_vm,
            outcome: outcome(ended),
            reason: ended.reason.as_deref(),
            total_ms: ended.total_ms,
            blackout_ms: ended.blackout_ms,
            rounds: ended.rounds,
            bytes: &ended.bytes,
            pages: &ended.pages,
        })?,
        // Nothing was moved, so there are no figures; why is said at the end.
        Format::Table if ended.rounds == 0 && outcome(ended) != Outcome::Completed => {}
        Format::Table => output.text(&picture(ended))?,
    }
    output.flush()?;
    if outcome(ended) != Outcome::Completed {
        let first = ended.log.len().saturating_sub(LOG_LINES);
        log(ended, first).iter().for_each(|line| say(line));
    }
    Ok(())
}

/// Lines of the log from number `first` on.
pub(in crate::command) fn log(migration: &Migration, first: usize) -> Vec<String> {
    let line = |line: &memdex_wire::migration::MigrationLogLine| {
        let at = duration(Duration::from_millis(line.at_ms));
        format!("{at:>9}  {:<13}  {}", phase(line.phase), told(&line.text))
    };
    migration.log.iter().skip(first).map(line).collect()
}

/// The figures, as of now or at the end.
pub(in crate::command) fn picture(migration: &Migration) -> String {
    let MigrationPages { total, zero, matched, sent } = migration.pages;
    let processed = zero.saturating_add(matched).saturating_add(sent);
    let moved = &migration.bytes;
    let mut pages = table(&["", ">PAGES", ">SIZE", ">SHARE", ""]);
    for (what, count_of, size, meaning) in [
        ("new", sent, moved.sent, "sent"),
        ("already there", matched, moved.matched, "the other host held it, or had just got it"),
        ("zero", zero, moved.zero, "nothing sent"),
        (
            "processed",
            processed,
            moved.zero.saturating_add(moved.matched).saturating_add(moved.sent),
            "all iterations together",
        ),
    ] {
        let share = percent(count_of, processed);
        pages.add_row([what.to_owned(), count(count_of), bytes(size), share, meaning.to_owned()]);
    }
    let mut figures = table(&["", ""]);
    for (what, figure) in [
        ("memory", format!("{}, {} pages", bytes(moved.total), count(total))),
        ("on the wire", format!("{}, {} of memory, both ways", bytes(moved.wire), share(moved))),
        ("total time", duration(Duration::from_millis(migration.total_ms))),
        ("downtime", format!("{} (blackout)", milliseconds(migration.blackout_ms))),
        ("iterations", count(migration.rounds)),
    ] {
        figures.add_row([what.to_owned(), figure]);
    }
    let figures = lines(&figures);
    format!(
        "{} to {}: {}: {} new, {} already there, {} zero: {} saved\n\n{}\n{}",
        told(&migration.name),
        told(&migration.to),
        phase(migration.phase),
        count(sent),
        count(matched),
        count(zero),
        percent(zero.saturating_add(matched), processed),
        lines(&pages),
        // Its header is empty.
        figures.trim_start_matches('\n'),
    )
}

/// What crossed the wire as a share of the memory; a guest that writes a lot may need more than that.
fn share(moved: &MigrationBytes) -> String {
    if moved.wire <= moved.total || moved.total == 0 {
        return percent(moved.wire, moved.total);
    }
    format!("{:.1} times that", moved.wire as f64 / moved.total as f64)
}

/// A peer's figure may be anything that JSON can write.
pub(in crate::command) fn milliseconds(ms: f64) -> String {
    Duration::try_from_secs_f64(ms / 1e3).map_or_else(|_| "–".to_owned(), duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_figures_are_no_panic() {
        assert_eq!(milliseconds(41.25), "41.2 ms");
        assert_eq!([milliseconds(-1.0), milliseconds(f64::MAX), milliseconds(f64::NAN)], ["–", "–", "–"]);
        let moved = |total, wire| share(&MigrationBytes { total, wire, ..MigrationBytes::default() });
        assert_eq!([moved(100, 10), moved(100, 250), moved(0, 5)], ["10.0 %", "2.5 times that", "–"]);
    }
}
