//! How long after a write to a quiet page the map shows its new content.

use std::{collections::HashMap, time::Duration};

use memdex_tests::{Scratch, daemon::Daemon};
use memdex_wire::page::PageState;
use migrate_client::{Client, ClientOptions, HostUrl};

use crate::{
    daemon,
    figure::{Bound, Figures},
    vmm::{Vmm, now},
};

/// What is written, and how fast.
struct Load {
    figure: &'static str,
    mib: usize,
    writes: usize,
    per_second: usize,
    at_most_ms: f64,
}

const LOADS: [Load; 2] = [
    Load { figure: "freshness_1k_p99_ms", mib: 256, writes: 10_000, per_second: 1000, at_most_ms: 100.0 },
    // As much as the budget for what a guest pays gives: a hundredth of a vCPU.
    Load { figure: "freshness_p99_ms", mib: 4096, writes: 150_000, per_second: 10_000, at_most_ms: 100.0 },
];
/// Time between two looks at the map; part of what is measured.
const LOOK: Duration = Duration::from_millis(2);

pub(crate) fn measure(figures: &mut Figures, wanted: impl Fn(&str) -> bool) {
    for load in LOADS.iter().filter(|load| wanted(load.figure)) {
        measure_load(figures, load);
    }
}

fn measure_load(figures: &mut Figures, load: &Load) {
    let Load { figure, mib, writes: count, per_second, at_most_ms } = *load;
    eprintln!("{count} writes to quiet pages of {mib} MiB at {per_second} a second");
    let scratch = Scratch::new("bench-fresh");
    let mut vmm = Vmm::start(&scratch, "vmm", mib, 0, 1);
    let daemon = daemon::start(&scratch, "daemon", &format!("*-{}", vmm.pid()));
    daemon::indexed(&daemon, vmm.pid());
    // Pages are quiet when nothing was published for them lately.
    std::thread::sleep(Duration::from_secs(3));
    let delays = delays(&daemon, &mut vmm, 1000, count, per_second);
    let how = format!(
        "median {:.1} ms, largest {:.1} ms, by HTTP, {count} writes",
        quantile(&delays, 0.5),
        quantile(&delays, 1.0)
    );
    figures.add(figure, quantile(&delays, 0.99), "ms", Bound::AtMost(at_most_ms), how);
}

/// Writes to pages at a pace; milliseconds until each is shown with its new content, rising. Infinite: not within the bound.
pub(crate) fn delays(
    daemon: &Daemon,
    vmm: &mut Vmm,
    first: usize,
    count: usize,
    per_second: usize,
) -> Vec<f64> {
    let vm = daemon::vm(daemon, vmm.pid()).expect("the daemon watches the VMM");
    let url: HostUrl = daemon.url().parse().expect("the daemon's own URL");
    let (writes, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(url, &vm.id, vm.generation, count));
        let writes = vmm.write(first, count, per_second);
        (writes, watcher.join().expect("the watcher does not panic"))
    });
    let mut delays: Vec<f64> = writes
        .iter()
        .map(|(page, written)| {
            seen.get(page).map_or(f64::INFINITY, |seen| seen.saturating_sub(*written) as f64 / 1e6)
        })
        .collect();
    delays.sort_by(f64::total_cmp);
    delays
}

/// The value that this share of all is below, of values that rise.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    values[((values.len() - 1) as f64 * share) as usize]
}

/// Looks at what changed until every write was seen; when each page was first seen with new content.
fn watch(url: HostUrl, vm: &str, mut since: u64, count: usize) -> HashMap<u64, u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::new(url, ClientOptions::default()).expect("a client");
        let mut seen = HashMap::new();
        let give_up = now() + 30_000_000_000;
        while seen.len() < count && now() < give_up {
            tokio::time::sleep(LOOK).await;
            let mut pages = client.pages(vm, Some(since)).await.expect("the daemon answers");
            let mut newest = since;
            while let Some(record) = pages.next().await {
                let record = record.expect("the map is well-formed");
                if record.state == PageState::Current && record.generation > since {
                    seen.entry(record.page).or_insert_with(now);
                    newest = newest.max(record.generation);
                }
            }
            since = newest;
        }
        seen
    })
}
