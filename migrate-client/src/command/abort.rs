//! `memdex abort`: calls a migration off and waits for its end.

use memdex_wire::migration::Outcome;

use super::{Context, Failure, migrate::report};
use crate::{
    output::{Format, told},
    progress::{migration::MigrationProgress, say},
};

/// Has the host call a migration off, and waits until it has ended: the VM goes on where it was. Exit 5 if it is too
/// late for that, as the VM is being handed over; exit 1 if it ended otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex migrations                              which ids there are
  memdex abort 7f3a90
  memdex abort 7f3a90 --detach                   ask for it, and don't wait for the end")]
pub(super) struct Arguments {
    /// Id of the migration.
    id: String,
    /// Only ask for it; don't wait for the end.
    #[arg(long)]
    detach: bool,
}

pub(super) async fn run(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    let asked = context.client.abort_migration(&arguments.id).await?;
    if arguments.detach {
        match context.output.format() {
            Format::Json | Format::Jsonl => context.output.document(&asked)?,
            Format::Table => say(&format!("{} is being called off", told(&asked.id))),
        }
        return Ok(context.output.flush()?);
    }
    let mut progress = MigrationProgress::new(context.progress, "abort", &asked.name);
    let ended = context.client.follow_migration(&asked.id, |state| progress.show(state)).await?;
    progress.finish();
    match context.output.format() {
        Format::Json | Format::Jsonl => report::print(&mut context.output, &ended)?,
        Format::Table => {
            let reason = ended.reason.as_deref().map_or_else(String::new, |why| format!(": {}", told(why)));
            say(&format!("{} {}{reason}", told(&ended.name), ended.phase.name()));
        }
    }
    match report::outcome(&ended) {
        Outcome::Aborted => Ok(()),
        Outcome::Completed => {
            Err(Failure::Failed("it had completed before it could be called off".to_owned()))
        }
        Outcome::Failed => report::failure(&ended).map_or(Ok(()), Err),
    }
}
