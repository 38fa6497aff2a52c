//! What a migration would cost, and whether it could begin now. Nothing moves and nothing is changed.
//!
//! Owns the estimate: bytes on the wire from what the destination lacks, time from the cap or from what the link to it last did, blackout from how fast
//! the guest writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::{
    PAGE_SIZE,
    migration::{Compression, MigrationPlan, MigrationRequest},
    problem::Problem,
};
use migrate_client::Client;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    checks,
    connect::{connect, hello, introduce},
};
use crate::{
    compare::compare,
    host::Vm,
    migrate::{
        Shared,
        destination::check,
        new_id,
        record::{Record, Subject},
    },
};

/// Bytes on the wire for a page that has to be sent, as a share of its size: what zstd typically makes of guest memory.
const COMPRESSED: f64 = 0.33;
/// Bytes on the wire for a page whose content is only named.
const NAMED: f64 = 17.0;
/// Bytes a second if nothing is known of the link: 1 Gb/s.
const LINK: u64 = 125_000_000;
/// What one page takes on both hosts, whatever is done with it.
const WORK: Duration = Duration::from_micros(8);
/// Connecting, stopping, device state.
const FIXED: Duration = Duration::from_millis(300);
/// The part of that in which the guest stands still.
const FIXED_BLACKOUT: Duration = Duration::from_millis(30);
/// Time over which the guest's writes are counted.
const LOOK: Duration = Duration::from_millis(300);
/// Pages written in the last so much of a second are what is left at the end.
const TAIL: f64 = 0.2;
/// Time for the destination to look at the waiting VM.
const ANSWER: Duration = Duration::from_secs(15);

/// Plans one migration.
pub(crate) async fn plan(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    client: &Client,
    request: &MigrationRequest,
) -> Result<MigrationPlan, Problem> {
    let begun = Instant::now();
    let before = vm.counters.pages_gone_stale.get();
    let found = checks::look(vm, request).await;
    let version = found.version.map(|version| version.to_string()).unwrap_or_default();
    // QEMU's monitor serves one at a time.
    drop(found.monitor);
    let mut checks = found.checks;
    checks.extend(ask(client, vm, request, version, found.backends).await);
    let snapshot = vm.snapshot();
    let pages = compare(client, &snapshot, &Arc::new(())).await?;
    sleep_until((begun + LOOK).into()).await;
    let dirty_rate = (vm.counters.pages_gone_stale.get() - before) as f64 / begun.elapsed().as_secs_f64();

    let rate =
        request.max_bandwidth.or_else(|| shared.last_rate(&client.host().to_string())).unwrap_or(LINK).max(1);
    let sent = (pages.missing + pages.stale) as f64;
    let part = if request.compression == Compression::None { 1.0 } else { COMPRESSED };
    let wire = sent * PAGE_SIZE as f64 * part + (sent + pages.matched as f64) * NAMED;
    let moved = u32::try_from(pages.missing + pages.stale + pages.matched).unwrap_or(u32::MAX);
    let expected = FIXED + WORK * moved + Duration::from_secs_f64(wire / rate as f64);
    let tail = dirty_rate * TAIL;
    let blackout = FIXED_BLACKOUT
        + Duration::from_secs_f64(tail * (PAGE_SIZE as f64 * part / rate as f64 + WORK.as_secs_f64()));
    Ok(MigrationPlan {
        vm: vm.id().to_owned(),
        name: vm.name().to_owned(),
        to: request.to.clone(),
        dest_vm: request.dest_vm.clone().unwrap_or_else(|| vm.name().to_owned()),
        possible: checks.iter().all(|check| check.ok),
        checks,
        tracking: vm.tracking(),
        pages,
        bytes: pages.in_bytes(),
        wire_bytes: wire as u64,
        rate,
        dirty_rate: dirty_rate as u64,
        expected_ms: expected.as_millis() as u64,
        expected_blackout_ms: blackout.as_millis() as u64,
    })
}

/// What the destination says of the waiting VM.
async fn ask(
    client: &Client,
    vm: &Vm,
    request: &MigrationRequest,
    version: String,
    backends: Vec<String>,
) -> Vec<memdex_wire::migration::MigrationCheck> {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let record = Record::new(new_id(), memdex_wire::migration::Direction::Outgoing, Subject::default());
    let hello = hello(vm, &vm.snapshot(), request, version, backends, true);
    let asked = async {
        let (speaker, mut frames) = connect(client, &record, &stop).await?;
        introduce(&speaker, &mut frames, &hello, &stop).await
    };
    match timeout(ANSWER, asked).await {
        Ok(Ok(ready)) => ready.checks,
        Ok(Err(super::Stop::Aborted(why) | super::Stop::Failed(why))) => {
            vec![check("destination", Err::<String, _>(why))]
        }
        Err(_) => vec![check("destination", Err::<String, _>("the destination does not answer in time"))],
    }
}
