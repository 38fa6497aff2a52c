//! `memdex diff`: what another host lacks of a VM, before anything moves.

use std::time::Duration;

use memdex_wire::{
    diff::{Diff, DiffCounts},
    vm::Tracking,
};
use migrate_client::printable;

use super::{Context, Failure, values};
use crate::{
    output::{Format, bytes, count, duration, lines, percent, table},
    progress::say,
};

/// Asks what the host at URL lacks of the VM. Nothing moves, and nobody scans memory for it: both hosts know their
/// pages already.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex diff vm1 --to host2                        a peer of the daemon: known before it is asked for
  memdex diff vm1 --to host2 --ask                  the same, asked now
  memdex diff vm1 --to tls://host-2.example:7373    any other host: asked
  memdex diff vm1 --to tcp://127.0.0.1:7374 -o json | jq .bytes.missing")]
pub(super) struct Arguments {
    /// Id, name or pid of the VM.
    vm: String,
    /// The other host, as seen from the one that is asked: tls://host:port, tcp://host:port or unix:/path, or the name
    /// of a peer that its daemon knows.
    #[arg(long, value_name = "URL", value_parser = values::host)]
    to: String,
    /// Ask the other host now, even if the daemon follows what it holds and knows the answer within a second.
    #[arg(long)]
    ask: bool,
}

pub(super) async fn run(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    let mut progress = context.progress("diff", &arguments.vm);
    let (vm, to) = (&arguments.vm, &arguments.to);
    let diff = if arguments.ask {
        progress.during(context.client.diff_asked(vm, to)).await?
    } else {
        progress.during(context.client.diff(vm, to)).await?
    };
    progress.finish();
    match context.output.format() {
        Format::Json | Format::Jsonl => context.output.document(&diff)?,
        Format::Table => {
            context.output.text(&picture(&arguments.vm, &diff))?;
            if diff.tracking == Tracking::Advisory {
                say(
                    "tracking is advisory: some of these pages may have changed unseen since they were read (see `memdex vms`)",
                );
                diff.advisory_reasons.iter().for_each(|reason| say(&printable(reason)));
            }
        }
    }
    Ok(context.output.flush()?)
}

fn picture(vm: &str, diff: &Diff) -> String {
    let DiffCounts { total, zero, matched, missing, stale } = diff.pages;
    let mut table = table(&["", ">PAGES", ">SIZE", ">SHARE", ""]);
    for (what, pages, size, meaning) in [
        ("new", missing, diff.bytes.missing, "the other host lacks them"),
        ("already there", matched, diff.bytes.matched, "the other host holds the same content"),
        ("zero", zero, diff.bytes.zero, "nothing to send"),
        ("stale", stale, diff.bytes.stale, "content not known right now"),
        ("total", total, diff.bytes.total, ""),
    ] {
        table.add_row([
            what.to_owned(),
            count(pages),
            bytes(size),
            percent(pages, total),
            meaning.to_owned(),
        ]);
    }
    let source = match diff.picture_age_ms {
        Some(age) => format!("known from what it told {} ago", duration(Duration::from_millis(age))),
        None => format!("asked and answered in {}", duration(Duration::from_micros(diff.elapsed_us))),
    };
    let saved = percent(zero.saturating_add(matched), total);
    format!(
        "{} to {}: {} new, {} already there, {} zero: {saved} saved\n\n{}\ngeneration {}, {source}; a write can have gone unnoticed for {} at most\n",
        printable(vm),
        printable(&diff.to),
        count(missing),
        count(matched),
        count(zero),
        lines(&table),
        diff.generation,
        duration(Duration::from_millis(diff.staleness_ms)),
    )
}
