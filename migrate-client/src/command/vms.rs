//! `memdex vms`: the VMs of the host, and how well each is known.

use memdex_wire::vm::{Tracking, VmInfo};
use migrate_client::printable;

use super::{Context, Failure};
use crate::{
    output::{Format, bytes, lines, percent, table},
    progress::say,
};

pub(super) async fn run(mut context: Context) -> Result<(), Failure> {
    let vms = context.client.vms().await?;
    match context.output.format() {
        Format::Json => context.output.document(&vms)?,
        Format::Jsonl => vms.iter().try_for_each(|vm| context.output.document(vm))?,
        Format::Table if vms.is_empty() => {
            say(&format!(
                "{} has no VM that it may index: start one, or see --include and --exclude of memdexd",
                context.client.host()
            ));
        }
        Format::Table => {
            context.output.text(&picture(&vms))?;
            for vm in vms.iter().filter(|vm| vm.tracking == Tracking::Advisory) {
                say(&format!("{}: tracking is advisory: {}", printable(&vm.name), why(vm)));
            }
        }
    }
    Ok(context.output.flush()?)
}

fn picture(vms: &[VmInfo]) -> String {
    let columns = [
        "NAME", "ID", ">PID", "VMM", ">MEMORY", "TRACKING", ">CURRENT", ">ZERO", ">ABSENT", ">STALE", "STATE",
    ];
    let mut table = table(&columns);
    for vm in vms {
        let share = |pages| percent(pages, vm.pages.total);
        table.add_row([
            printable(&vm.name),
            printable(&vm.id),
            vm.pid.to_string(),
            format!("{}/{}", printable(&vm.vmm), printable(&vm.accelerator)),
            bytes(vm.memory_bytes),
            tracking(vm.tracking).to_owned(),
            share(vm.pages.current),
            share(vm.pages.zero),
            share(vm.pages.absent),
            share(vm.pages.stale),
            state(vm),
        ]);
    }
    lines(&table)
}

pub(super) const fn tracking(tracking: Tracking) -> &'static str {
    match tracking {
        Tracking::Exact => "exact",
        Tracking::Advisory => "advisory",
    }
}

/// What a person should know first.
pub(super) fn state(vm: &VmInfo) -> String {
    if vm.mismatches > 0 {
        format!("{} MISMATCHES", vm.mismatches)
    } else if vm.indexed.done < vm.indexed.total {
        format!("indexing {}", percent(vm.indexed.done, vm.indexed.total))
    } else if vm.pages.unsettled > 0 {
        format!("indexed, {} settling", percent(vm.pages.unsettled, vm.pages.total))
    } else {
        "indexed".to_owned()
    }
}

fn why(vm: &VmInfo) -> String {
    if vm.advisory_reasons.is_empty() {
        return "the daemon does not say why".to_owned();
    }
    printable(&vm.advisory_reasons.join("; "))
}
