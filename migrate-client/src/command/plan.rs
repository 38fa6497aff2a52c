//! `memdex plan`: what it would cost to move each VM to each host.
//!
//! Owns the pairs and their order. One plan is the daemon's; nothing moves.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, stream};
use memdex_wire::{
    migration::{MigrationPlan, MigrationRequest},
    problem::Code,
    vm::Tracking,
};
use migrate_client::{Client, ClientError, HostUrl};
use serde::Serialize;

use super::{
    Context, Failure,
    migrate::cost::{ADVISORY, too_long, why_not},
    values,
};
use crate::{
    output::{Format, bytes, duration, lines, table, told},
    progress::say,
};

/// Plans under way at once.
const AT_ONCE: usize = 4;
/// Most pairs of a VM and a host.
const MOST: usize = 10_000;

/// Asks for each VM what it would cost to move it to each of the hosts, and whether it could move now; nothing moves.
/// For each VM the host that needs the fewest bytes on the wire comes first. Exit 1 if a plan cannot be made at all, 3 if the host has none of the VMs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex plan --to tls://host-2.example:7373     every VM of this host
  memdex plan vm1 vm2 --to host-2 --to host-3    two VMs, two peers that memdexd knows
  memdex plan vm1 --to host-2 --to host-3 -o json | jq -r 'map(select(.possible))[0].to'
      the cheapest host for vm1
  memdex migrate vm1 --to host-2 --dry-run       one plan, with all checks")]
pub(super) struct Arguments {
    /// Ids, names or pids of VMs; by default every VM of the host. A URL among them is one more host.
    vm: Vec<String>,
    /// A host the VMs could move to: a URL as seen from the host that is asked, or the name of a peer that its daemon
    /// knows. May be given several times.
    #[arg(long, value_name = "URL", value_parser = values::host, required = true)]
    to: Vec<String>,
    /// Most bytes a second on the wire (at least 100K), as in `memdex migrate`.
    #[arg(long, value_name = "BYTES/S", value_parser = values::bandwidth)]
    max_bandwidth: Option<u64>,
}

/// One row.
#[derive(Serialize)]
#[serde(untagged)]
enum Row {
    Plan(Box<MigrationPlan>),
    Error(Trouble),
}

/// A pair that nothing can be said about.
#[derive(Serialize)]
struct Trouble {
    vm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    to: String,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
}

impl Row {
    fn trouble(&self) -> Option<&Trouble> {
        match self {
            Self::Plan(_) => None,
            Self::Error(trouble) => Some(trouble),
        }
    }

    /// Possible ones first, cheapest first; errors last.
    fn rank(&self) -> (u8, u64) {
        match self {
            Self::Plan(plan) => (u8::from(!plan.possible), plan.wire_bytes),
            Self::Error(_) => (2, 0),
        }
    }
}

pub(super) async fn run(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { vm: mut keys, mut to, max_bandwidth } = arguments;
    to.extend(keys.extract_if(.., |key| key.parse::<HostUrl>().is_ok()));
    let mut names = HashMap::new();
    if keys.is_empty() {
        let vms = context.client.vms().await?;
        keys = vms.iter().map(|vm| vm.id.clone()).collect();
        names = vms.into_iter().map(|vm| (vm.id, vm.name)).collect();
    }
    let pairs = keys.len() * to.len();
    if pairs > MOST {
        return Err(Failure::Usage(format!("{pairs} plans are more than the {MOST} there may be: name VMs")));
    }
    let mut progress = context.progress("plan", &format!("of {pairs}"));
    let mut rows = progress.during(ask(&context.client, &keys, &to, max_bandwidth)).await?;
    progress.finish();
    rows.sort_by_key(|(vm, row)| (*vm, row.rank()));
    let mut rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    for row in &mut rows {
        if let Row::Error(trouble) = row {
            trouble.name = names.get(&trouble.vm).cloned();
        }
    }
    match context.output.format() {
        Format::Json => context.output.document(&rows)?,
        Format::Jsonl => rows.iter().try_for_each(|row| context.output.document(row))?,
        Format::Table if rows.is_empty() => say("the host has no VM that could move"),
        Format::Table => {
            context.output.text(&picture(&rows))?;
            let advisory = |row: &Row| matches!(row, Row::Plan(plan) if plan.tracking == Tracking::Advisory);
            if rows.iter().any(advisory) {
                say(&format!("* {ADVISORY}"));
            }
            for row in &rows {
                if let Row::Plan(plan) = row
                    && let Some(warning) = too_long(plan, None)
                {
                    say(&format!("to {}: {warning}", told(&plan.to)));
                }
            }
        }
    }
    context.output.flush()?;
    let troubles: Vec<_> = rows.iter().filter_map(Row::trouble).collect();
    if troubles.is_empty() {
        return Ok(());
    }
    let sentence = format!("{} of {pairs} plans could not be made", troubles.len());
    let none_there = troubles.len() == pairs && troubles.iter().all(|row| row.code == Some(Code::VmNotFound));
    Err(if none_there { Failure::NotFound(sentence) } else { Failure::Failed(sentence) })
}

/// All plans, each with the number of its VM. Only if the host that is asked cannot be reached there is none.
async fn ask(
    client: &Client,
    keys: &[String],
    to: &[String],
    max_bandwidth: Option<u64>,
) -> Result<Vec<(usize, Row)>, ClientError> {
    let pairs: Vec<_> = keys
        .iter()
        .enumerate()
        .flat_map(|(vm, key)| to.iter().map(move |to| (vm, key, to)))
        .map(|(vm, key, to)| async move {
            let request = MigrationRequest { max_bandwidth, ..MigrationRequest::new(key, to) };
            match client.plan(&request).await {
                Ok(plan) => Ok((vm, Row::Plan(Box::new(plan)))),
                Err(error) if error.is_unreachable() && error.problem().is_none() => Err(error),
                Err(error) => {
                    let (error, code) = (error.to_string(), error.problem().map(|problem| problem.code));
                    let (key, to) = (key.clone(), to.clone());
                    Ok((vm, Row::Error(Trouble { vm: key, name: None, to, error, code })))
                }
            }
        })
        .collect();
    let mut rows = Vec::with_capacity(pairs.len());
    let mut answers = stream::iter(pairs).buffer_unordered(AT_ONCE);
    while let Some(row) = answers.next().await {
        rows.push(row?);
    }
    Ok(rows)
}

fn picture(rows: &[Row]) -> String {
    let columns = [
        "VM",
        "TO",
        ">NEW",
        ">ALREADY THERE",
        ">ZERO",
        ">STALE",
        ">ON THE WIRE",
        ">TIME",
        ">DOWNTIME",
        "POSSIBLE",
    ];
    let mut table = table(&columns);
    for row in rows {
        match row {
            Row::Plan(plan) => {
                let star = if plan.tracking == Tracking::Advisory { " *" } else { "" };
                table.add_row([
                    format!("{}{star}", told(&plan.name)),
                    told(&plan.to),
                    bytes(plan.bytes.missing),
                    bytes(plan.bytes.matched),
                    bytes(plan.bytes.zero),
                    bytes(plan.bytes.stale),
                    bytes(plan.wire_bytes),
                    duration(Duration::from_millis(plan.expected_ms)),
                    duration(Duration::from_millis(plan.expected_blackout_ms)),
                    why_not(plan).map_or_else(|| "yes".to_owned(), |why| format!("no: {why}")),
                ]);
            }
            Row::Error(trouble) => {
                let mut cells = vec![told(trouble.name.as_ref().unwrap_or(&trouble.vm)), told(&trouble.to)];
                cells.resize(columns.len() - 1, "–".to_owned());
                cells.push(format!("not known: {}", told(&trouble.error)));
                table.add_row(cells);
            }
        }
    }
    lines(&table)
}
