//! `memdex sync`: return when every page is current.

use std::time::Duration;

use migrate_client::printable;

use super::{Context, Failure};
use crate::{
    output::{Format, count, duration},
    progress::say,
};

/// Longest time a host takes for a sync.
const MOST: Duration = Duration::from_secs(600);
/// Time between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until every page of the VM has been current at some moment since the call (a page that is written again and
/// again: as of the call), then prints the generation of the map.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex sync vm1                  wait at most 30 s
  memdex sync vm1 --timeout 5m     for a VM that was just found
  gen=$(memdex sync vm1); sleep 60; memdex pages vm1 --since $gen      what changed within a minute")]
pub(super) struct Arguments {
    /// Id, name or pid of the VM.
    vm: String,
    /// Give up after this long, such as 500ms, 30s or 5m; at most 10m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_millis() == 0 => Err("the time must be at least 1ms".to_owned()),
        Ok(time) if time > MOST => Err("a sync takes at most 10m".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it like 500ms, 30s or 5m")),
    }
}

pub(super) async fn run(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    let mut progress = context.progress("sync", &arguments.vm);
    let client = context.client.clone();
    let report = {
        let mut work = std::pin::pin!(client.sync(&arguments.vm, arguments.timeout));
        loop {
            let look = async {
                tokio::time::sleep(LOOK).await;
                context.client.vm(&arguments.vm).await
            };
            tokio::select! {
                biased;
                report = &mut work => break report?,
                // How far it is, is an extra: if it can't be had, the answer to the sync will say why.
                vm = look => if let Ok(vm) = vm {
                    let indexing = vm.indexed.done < vm.indexed.total;
                    let known = vm.pages.total.saturating_sub(vm.pages.stale);
                    progress.set(if indexing { vm.indexed.done } else { known }, vm.pages.total);
                },
            }
        }
    };
    progress.set(report.pages.total, report.pages.total);
    progress.finish();
    match context.output.format() {
        Format::Json | Format::Jsonl => context.output.document(&report)?,
        Format::Table => {
            say(&format!(
                "{}: {} pages known after {}; {} of them were written again meanwhile",
                printable(&arguments.vm),
                count(report.pages.total),
                duration(Duration::from_millis(report.elapsed_ms)),
                count(report.pages.stale),
            ));
            context.output.line(&report.generation.to_string())?;
        }
    }
    Ok(context.output.flush()?)
}
