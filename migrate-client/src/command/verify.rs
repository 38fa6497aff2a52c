//! `memdex verify`: does the map tell the truth?

use std::time::Duration;

use migrate_client::printable;

use super::{Context, Failure};
use crate::output::{Format, count, duration};

/// Has the daemon re-read and re-hash every current page of the VM and compare with the map. The guest goes on; pages
/// that are written meanwhile are passed over. Exit code 1 if a page differs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex verify vm1
  memdex verify vm1 -o json | jq .mismatches")]
pub(super) struct Arguments {
    /// Id, name or pid of the VM.
    vm: String,
}

pub(super) async fn run(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    let mut progress = context.progress("verify", &arguments.vm);
    let report = progress.during(context.client.verify(&arguments.vm)).await?;
    progress.finish();
    let name = printable(&arguments.vm);
    match context.output.format() {
        Format::Json | Format::Jsonl => context.output.document(&report)?,
        Format::Table => {
            context.output.line(&format!(
                "{name}: {} pages checked, {} passed over (stale, or written meanwhile), {} mismatches, {}",
                count(report.checked),
                count(report.skipped),
                count(report.mismatches),
                duration(Duration::from_millis(report.elapsed_ms)),
            ))?;
            for example in &report.examples {
                context.output.line(&format!(
                    "  page {} is not what the map says ({:?})",
                    example.page, example.state
                ))?;
            }
        }
    }
    context.output.flush()?;
    if report.mismatches == 0 {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{name}: {} pages differ from the map, which is a defect: keep the log of memdexd, and don't rely on this VM's map",
        count(report.mismatches)
    )))
}
