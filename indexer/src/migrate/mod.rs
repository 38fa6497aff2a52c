//! Live migration of unmodified QEMU VMs: a running VM moves to a waiting one on another host, and only what that host lacks crosses the wire.
//!
//! ```text
//!        source                                             destination
//!   api ── start ──> source ══ control: offers, digest, ══> destination ──> RAM file
//!                      │       device state, hand-over           │
//!          map, RAM ──>│ ══ data: pages, compressed ══════> stream│<── content of this host
//!                      │                                          │
//!    QEMU <── monitor ─┤                                          ├─ monitor ──> QEMU (-incoming defer)
//!             guard ───┘                                          └─── guard, journal
//! ```
//!
//! Owns migrations as resources: starting, finding, aborting, how many go on at once. Nothing of a VM's memory passes through the command that started
//! one; it may go away.
//!
//! | Module | Owns |
//! |---|---|
//! | [`source`] | an outgoing migration: checks, rounds, switch-over, and what becomes of the guest |
//! | [`destination`] | an incoming one: filling the RAM file, loading device state, letting the guest run |
//! | [`resolve`] | why the guest never runs twice |
//! | [`guard`] | what happens if a daemon is killed in the midst of it |
//! | [`journal`] | what a destination has decided, for the daemon after it |
//! | [`ledger`] | what each page holds over there, and the digest of all |
//! | [`link`], [`codec`], [`pace`] | connections, compression, bandwidth |
//! | [`monitor`], [`qmp`], `backends` | QEMU |
//! | [`in_flight`] | contents that several moving VMs have in common |
//! | [`record`], [`known`] | what the world is told |

mod backends;
pub mod codec;
pub mod destination;
mod device;
pub mod guard;
pub mod in_flight;
pub mod journal;
mod known;
pub mod ledger;
mod level;
pub mod link;
pub mod monitor;
pub mod pace;
pub mod qmp;
pub mod record;
pub mod resolve;
pub mod source;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use memdex_wire::{
    migration::{Direction, Migration, MigrationPlan, MigrationRequest, Outcome, Phase},
    problem::{Code, Problem},
};
use migrate_client::Channel;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    host::{FindError, Host, Vm},
    metrics::MigrationCounters,
    peer::Peers,
};
use known::Known;
pub(crate) use known::Shared;
use record::{Record, Subject};

/// Longest time for which the guest may be asked to stand still.
const MAX_DOWNTIME_MS: u64 = 60_000;

/// Settings of migrations.
#[derive(Debug, Clone)]
pub struct MigrationOptions {
    /// Outgoing migrations at once; further ones wait.
    pub at_once: usize,
    /// Most bytes a second that all outgoing migrations send together.
    pub max_bandwidth: Option<u64>,
    /// Folder of the journal.
    pub journal: PathBuf,
}

/// All migrations of this host. Clones name the same ones.
#[derive(Debug, Clone)]
pub struct Migrations(Arc<Shared>);

/// A name for a migration: 16 random bytes in hex.
pub(crate) fn new_id() -> String {
    let mut bytes = [0u8; 16];
    // Without randomness there would be no daemon: its tokens and tables are made of it.
    if getrandom::fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&std::process::id().to_le_bytes().repeat(2));
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text can be the name of a migration.
#[must_use]
pub fn is_id(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Migrations {
    /// Begins with none. `stop` calls off those under way.
    #[must_use]
    pub fn new(host: Host, peers: Arc<Peers>, options: &MigrationOptions, stop: CancellationToken) -> Self {
        Self(Arc::new(Shared::new(host, peers, options, stop)))
    }

    /// Finishes what a daemon before this one had decided. Call it before anybody can ask.
    pub fn recover(&self) {
        destination::recover(&self.0);
    }

    /// Begins an outgoing migration.
    ///
    /// # Errors
    /// If there is no such VM or host, the settings make no sense, or the VM is on its way already.
    pub fn start(&self, request: MigrationRequest) -> Result<Migration, Problem> {
        let (vm, client) = self.parties(&request)?;
        let subject = Subject {
            vm: vm.id().to_owned(),
            name: vm.name().to_owned(),
            to: request.to.clone(),
            dest_vm: request.dest_vm.clone().unwrap_or_else(|| vm.name().to_owned()),
        };
        let record = Record::new(new_id(), Direction::Outgoing, Subject::default());
        let record = Arc::new(record.announced(self.0.host.shared()));
        record.set_subject(subject, u64::from(vm.snapshot().pages()));
        let abort = self.0.stop.child_token();
        let known =
            Known::Outgoing { record: Arc::clone(&record), abort: abort.clone(), vm: vm.id().to_owned() };
        self.0.admit(known, vm.id()).map_err(|why| Problem::new(Code::Conflict, why))?;
        let (shared, ours) = (Arc::clone(&self.0), Arc::clone(&record));
        self.0.tasks.spawn(async move {
            let to = client.host().to_string();
            let run = source::run(Arc::clone(&shared), vm, client, request, Arc::clone(&ours), abort);
            if tokio::spawn(run).await.is_err() {
                // Its guard has put the guest back, or will.
                ours.end(
                    Outcome::Failed,
                    "memdexd is broken: its log says where; the guard sees to the guest",
                );
            }
            shared.remember_rate(to, &ours);
            shared.count(&ours);
        });
        Ok(record.document())
    }

    /// What a migration would cost.
    ///
    /// # Errors
    /// If there is no such VM or host, or it cannot be asked. What stands in the way of a migration is no error.
    pub async fn plan(&self, request: &MigrationRequest) -> Result<MigrationPlan, Problem> {
        let (vm, client) = self.parties(request)?;
        source::plan(&self.0, &vm, &client, request).await
    }

    /// All migrations that are under way or remembered, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Migration> {
        self.0.lock().iter().map(|known| known.record().document()).collect()
    }

    /// One of them, by its id or the beginning of it.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Migration> {
        self.0.find_by(id).map(|known| known.record().document())
    }

    /// Calls one off; `None` if there is no such migration.
    ///
    /// # Errors
    /// If it is too late: the guest runs at the destination, or is being handed over.
    pub async fn abort(&self, id: &str) -> Option<Result<Migration, Problem>> {
        let known = self.0.find_by(id)?;
        let record = Arc::clone(known.record());
        let too_late = |why: &str| Err(Problem::new(Code::Conflict, why));
        Some(match (&known, record.phase()) {
            (_, Phase::Completed) => too_late("the migration is complete: the guest runs at the destination"),
            (_, Phase::Aborted | Phase::Failed) => Ok(record.document()),
            (Known::Outgoing { .. }, Phase::HandingOver) => {
                too_late("the guest is being handed over: it is too late to abort, see how it ends")
            }
            (Known::Outgoing { abort, .. }, _) => {
                abort.cancel();
                Ok(record.document())
            }
            (Known::Incoming { incoming, .. }, _) => {
                if incoming.verdict.abort() {
                    incoming.stop.cancel();
                    // Whoever asks wants to know how it ended.
                    let ended = async {
                        while record.ended().is_none() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    };
                    let _ = timeout(Duration::from_secs(4), ended).await;
                }
                Ok(record.document())
            }
        })
    }

    /// A place for the control connection of an incoming migration; `None` if there is none left.
    #[must_use]
    pub fn place_to_talk(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.talking).try_acquire_owned().ok()
    }

    /// Serves the control connection of an incoming migration, in its place.
    pub fn receive(&self, id: &str, io: Box<dyn Channel>, place: OwnedSemaphorePermit) {
        let received = destination::receive(Arc::clone(&self.0), id.to_owned(), io);
        self.0.tasks.spawn(async move {
            received.await;
            drop(place);
        });
    }

    /// Whether an incoming migration of this id takes data connections.
    #[must_use]
    pub fn takes_data(&self, id: &str) -> bool {
        matches!(self.0.find(id), Some(Known::Incoming { incoming, .. }) if incoming.record.ended().is_none())
    }

    /// Serves a data connection of an incoming migration.
    pub fn stream(&self, id: &str, io: Box<dyn Channel>) {
        if let Some(Known::Incoming { incoming, .. }) = self.0.find(id) {
            self.0.tasks.spawn(async move { destination::stream(&incoming, io).await });
        }
    }

    /// What all migrations together have done.
    #[must_use]
    pub fn figures(&self) -> &MigrationCounters {
        &self.0.figures
    }

    /// How many are in each phase, for metrics.
    #[must_use]
    pub fn phases(&self) -> Vec<(Direction, Phase, u64)> {
        let all = self.0.lock();
        let mut counts: HashMap<(bool, Phase), u64> = HashMap::new();
        for known in all.iter() {
            let record = known.record();
            *counts.entry((record.direction() == Direction::Outgoing, record.phase())).or_default() += 1;
        }
        drop(all);
        let directions = [(true, Direction::Outgoing), (false, Direction::Incoming)];
        let each = directions.into_iter().flat_map(|direction| Phase::ALL.map(|phase| (direction, phase)));
        each.map(|((out, direction), phase)| {
            (direction, phase, counts.get(&(out, phase)).copied().unwrap_or(0))
        })
        .collect()
    }

    /// Waits until all have ended; call it once `stop` is cancelled.
    pub async fn finish(&self, patience: Duration) {
        self.0.tasks.close();
        if timeout(patience, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("migrations are still being called off: their guards see to the VMs");
        }
    }

    fn parties(&self, request: &MigrationRequest) -> Result<(Arc<Vm>, migrate_client::Client), Problem> {
        let vm = self.0.host.find(&request.vm).map_err(|error| {
            let code = match error {
                FindError::NotFound(_) => Code::VmNotFound,
                FindError::Ambiguous { .. } => Code::VmAmbiguous,
            };
            Problem::new(code, migrate_client::printable(&error.to_string()))
        })?;
        let bad = |why: String| Err(Problem::new(Code::BadRequest, why));
        if let Some(downtime) =
            request.downtime_ms.filter(|downtime| !(1..=MAX_DOWNTIME_MS).contains(downtime))
        {
            return bad(format!("a downtime of {downtime} ms: it is between 1 and {MAX_DOWNTIME_MS}"));
        }
        if request.max_bandwidth.is_some_and(|cap| cap < 100_000) {
            return bad(
                "a bandwidth of less than 100000 bytes a second: nothing would ever arrive".to_owned()
            );
        }
        for path in [&request.qmp, &request.dest_qmp].into_iter().flatten() {
            if !path.starts_with('/') || path.len() > 4096 {
                return bad(format!(
                    "{:?} is no absolute path of a QMP socket",
                    migrate_client::printable(path)
                ));
            }
        }
        Ok((vm, self.0.peers.client(&request.to)?))
    }
}
