//! What is said before anything moves: the cost in a line, or all checks for `--dry-run`.

use std::time::Duration;

use memdex_wire::{
    migration::{MigrationPlan, MigrationRequest},
    vm::Tracking,
};
use migrate_client::Client;
use tokio::time::timeout;

use crate::{
    command::{Context, Failure},
    output::{Format, bytes, count, duration, lines, percent, table, told},
    progress::say,
};

/// How long the line is waited for: it is an extra.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time for which a guest may stand still if nobody says otherwise.
const DOWNTIME_MS: u64 = 50;

/// Said where pages may have changed unseen.
pub(in crate::command) const ADVISORY: &str = "tracking is advisory: all memory is hashed again while the guest stands still, which takes its time (see `memdex vms`)";

/// The cost in a line; nothing if it cannot be told, as the migration itself will say why.
pub(super) async fn line(client: &Client, request: &MigrationRequest) -> Option<String> {
    let plan = timeout(PATIENCE, client.plan(request)).await.ok()?;
    match plan {
        Ok(plan) => Some(summary(&plan)),
        Err(error) => {
            tracing::debug!(%error, "no plan");
            None
        }
    }
}

/// Shows the plan with all its checks. Nothing moves.
pub(super) async fn dry_run(mut context: Context, request: &MigrationRequest) -> Result<(), Failure> {
    let mut progress = context.progress("plan", &request.vm);
    let plan = progress.during(context.client.plan(request)).await?;
    progress.finish();
    match context.output.format() {
        Format::Json | Format::Jsonl => context.output.document(&plan)?,
        Format::Table => {
            context.output.text(&picture(&plan))?;
            if plan.tracking == Tracking::Advisory {
                say(ADVISORY);
            }
            if let Some(warning) = too_long(&plan, request.downtime_ms) {
                say(&warning);
            }
        }
    }
    context.output.flush()?;
    match why_not(&plan) {
        None => Ok(()),
        Some(why) => Err(Failure::Failed(format!(
            "{} cannot move to {} as things are: {why}",
            told(&plan.name),
            told(&plan.to)
        ))),
    }
}

/// Said if the guest would have to stand still for longer than it may: then the migration will not end by itself.
pub(in crate::command) fn too_long(plan: &MigrationPlan, downtime_ms: Option<u64>) -> Option<String> {
    let downtime_ms = downtime_ms.unwrap_or(DOWNTIME_MS);
    (plan.expected_blackout_ms > downtime_ms).then(|| {
        format!(
            "{} will probably not converge: it writes {}/s, and what would be left at {}/s takes {}, more than the {} it may stand still; \
             give it more with --downtime or --max-bandwidth, or choose with --on-no-converge what happens then",
            told(&plan.name),
            bytes(plan.dirty_rate.saturating_mul(memdex_wire::PAGE_SIZE as u64)),
            bytes(plan.rate),
            duration(Duration::from_millis(plan.expected_blackout_ms)),
            duration(Duration::from_millis(downtime_ms)),
        )
    })
}

/// Why it is not possible; nothing if it is.
pub(in crate::command) fn why_not(plan: &MigrationPlan) -> Option<String> {
    if plan.possible {
        return None;
    }
    let failed = plan.checks.iter().filter(|check| !check.ok);
    let reasons: Vec<_> = failed.map(|check| format!("{}: {}", check.name, check.detail)).collect();
    Some(if reasons.is_empty() { "the host does not say why".to_owned() } else { told(&reasons.join("; ")) })
}

fn summary(plan: &MigrationPlan) -> String {
    let mut text = format!(
        "{} to {}: {} new, {} already there, {} zero",
        told(&plan.name),
        told(&plan.to),
        count(plan.pages.missing),
        count(plan.pages.matched),
        count(plan.pages.zero)
    );
    if plan.pages.stale > 0 {
        text += &format!(", {} not known yet", count(plan.pages.stale));
    }
    text + &format!(
        "; about {} on the wire, {}, of which the guest stands still for {}",
        bytes(plan.wire_bytes),
        duration(Duration::from_millis(plan.expected_ms)),
        duration(Duration::from_millis(plan.expected_blackout_ms))
    )
}

fn picture(plan: &MigrationPlan) -> String {
    let mut figures = table(&["", ">PAGES", ">SIZE", ">SHARE", ""]);
    for (what, pages, size, meaning) in [
        ("new", plan.pages.missing, plan.bytes.missing, "has to be sent"),
        ("already there", plan.pages.matched, plan.bytes.matched, "the other host holds the same content"),
        ("zero", plan.pages.zero, plan.bytes.zero, "nothing to send"),
        ("stale", plan.pages.stale, plan.bytes.stale, "content not known right now"),
        ("total", plan.pages.total, plan.bytes.total, ""),
    ] {
        let share = percent(pages, plan.pages.total);
        figures.add_row([what.to_owned(), count(pages), bytes(size), share, meaning.to_owned()]);
    }
    let mut checks = table(&["CHECK", "", "FOUND"]);
    for check in &plan.checks {
        let verdict = if check.ok { "ok" } else { "FAILED" };
        checks.add_row([told(&check.name), verdict.to_owned(), told(&check.detail)]);
    }
    format!(
        "{}\n\n{}\n{}\nspeed {}/s, dirty rate {}/s, waits there: {}\n",
        summary(plan),
        lines(&figures),
        lines(&checks),
        bytes(plan.rate),
        bytes(plan.dirty_rate.saturating_mul(memdex_wire::PAGE_SIZE as u64)),
        told(&plan.dest_vm),
    )
}
