//! How `memdex top` looks: text only, knows no terminal.

use std::{collections::HashMap, time::Duration, time::SystemTime};

use memdex_wire::vm::{PageCounts, VmInfo};
use migrate_client::{ClientError, HostUrl, printable};

use crate::{
    command::vms,
    output::{bytes, count, duration, lines, percent, table},
};

/// Width of the bar that shows a VM's memory.
const BAR: u64 = 24;
/// Longest part of a name that is shown.
const NAME: usize = 24;

/// What is on the screen, kept while the host is silent.
#[derive(Default)]
pub(super) struct Frame {
    vms: Vec<VmInfo>,
    /// Changes of the map since the look before, by id.
    changes: HashMap<String, u64>,
    trouble: Option<String>,
}

impl Frame {
    pub(super) fn update(&mut self, answer: Result<Vec<VmInfo>, ClientError>) {
        match answer {
            Ok(mut vms) => {
                vms.sort_by(|a, b| (&a.name, a.pid).cmp(&(&b.name, b.pid)));
                let before: HashMap<_, _> =
                    self.vms.iter().map(|vm| (vm.id.as_str(), vm.generation)).collect();
                let change = |vm: &VmInfo| Some(vm.generation.saturating_sub(*before.get(vm.id.as_str())?));
                self.changes = vms.iter().filter_map(|vm| Some((vm.id.clone(), change(vm)?))).collect();
                self.vms = vms;
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(error.to_string()),
        }
    }

    pub(super) fn render(&self, host: &HostUrl, interval: Duration) -> Vec<String> {
        let memory = self.vms.iter().map(|vm| vm.memory_bytes).sum();
        let all = self.vms.iter().fold(PageCounts::default(), |mut all, vm| {
            all.total += vm.pages.total;
            all.stale += vm.pages.stale;
            all
        });
        let mut screen = vec![
            format!(
                "memdex  {host}  {} VMs, {}, {} known",
                self.vms.len(),
                bytes(memory),
                percent(all.total.saturating_sub(all.stale), all.total)
            ),
            String::new(),
        ];
        screen.extend(self.table().lines().map(str::to_owned));
        screen.push(String::new());
        screen.push(match &self.trouble {
            Some(trouble) => format!("still trying, q leaves: {trouble}"),
            None => format!(
                "█ current  ░ zero  · absent  × stale   every {}   q leaves",
                humantime::format_duration(interval)
            ),
        });
        screen
    }

    fn table(&self) -> String {
        let columns = [
            "NAME",
            ">PID",
            ">MEMORY",
            "TRACKING",
            "STATE",
            "PAGES",
            ">CURRENT",
            ">STALE",
            ">OLDEST MARK",
            ">CHANGES",
            ">MISSED",
        ];
        let mut table = table(&columns);
        for vm in &self.vms {
            table.add_row([
                printable(&vm.name).chars().take(NAME).collect(),
                vm.pid.to_string(),
                bytes(vm.memory_bytes),
                vms::tracking(vm.tracking).to_owned(),
                vms::state(vm),
                bar(&vm.pages),
                percent(vm.pages.current, vm.pages.total),
                count(vm.pages.stale),
                mark(vm),
                self.changes
                    .get(&vm.id)
                    .map_or_else(|| "–".to_owned(), |changes| format!("+{}", count(*changes))),
                count(vm.missed_by_ebpf),
            ]);
        }
        lines(&table)
    }
}

/// A VM in a line, for logs.
pub(super) fn line(at: SystemTime, vm: &VmInfo) -> String {
    format!(
        "{} {} generation {} current {} zero {} absent {} stale {} oldest mark {} {} {}",
        humantime::format_rfc3339_seconds(at),
        printable(&vm.name),
        vm.generation,
        vm.pages.current,
        vm.pages.zero,
        vm.pages.absent,
        vm.pages.stale,
        mark(vm),
        vms::tracking(vm.tracking),
        vms::state(vm),
    )
}

fn mark(vm: &VmInfo) -> String {
    if vm.oldest_mark_ms == 0 { "–".to_owned() } else { duration(Duration::from_millis(vm.oldest_mark_ms)) }
}

/// Current, zero, absent, stale, each with its share of the width. What is there at all is seen: at least one sign.
fn bar(pages: &PageCounts) -> String {
    let parts = [(pages.current, '█'), (pages.zero, '░'), (pages.absent, '·'), (pages.stale, '×')];
    let total = parts.iter().fold(0u64, |sum, (pages, _)| sum.saturating_add(*pages)).max(1);
    let mut widths = parts.map(|(pages, _)| {
        let share = u128::from(pages) * u128::from(BAR) / u128::from(total);
        if pages == 0 { 0 } else { (share as usize).max(1) }
    });
    // Rounding leaves a few signs too many or too few: the widest part takes them.
    if let Some(widest) = (0..widths.len()).max_by_key(|&part| widths[part]).filter(|&part| widths[part] > 0)
    {
        let others: usize = widths.iter().sum::<usize>() - widths[widest];
        widths[widest] = (BAR as usize).saturating_sub(others);
    }
    parts.iter().zip(widths).map(|((_, sign), width)| String::from(*sign).repeat(width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_its_width_and_shows_every_state_there_is() {
        for (current, zero, absent, stale) in
            [(1, 0, 0, 0), (1000, 1, 1, 1), (1, 1, 1, 1), (5, 7, 11, 100), (u64::MAX / 8, 0, 1, u64::MAX / 8)]
        {
            let bar = bar(&PageCounts { current, zero, absent, stale, ..PageCounts::default() });
            assert_eq!(bar.chars().count() as u64, BAR, "{bar}");
            for (pages, sign) in [(current, '█'), (zero, '░'), (absent, '·'), (stale, '×')] {
                assert_eq!(bar.contains(sign), pages > 0, "{bar}");
            }
        }
        assert_eq!(bar(&PageCounts::default()), "");
    }
}
