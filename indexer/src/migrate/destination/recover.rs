//! After a daemon was killed in the midst of incoming migrations: finishes what it had decided. Owns nothing that lasts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::migration::{Direction, Outcome};

use super::Incoming;
use crate::{
    migrate::{
        Shared,
        journal::{Decision, Entry},
        monitor::Monitor,
        record::{Record, Subject},
    },
    watch::process::Process,
};

/// The guard of the daemon before may still be busy with the monitor.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Goes through the journal. Sources that ask get an answer as soon as this returns.
pub(crate) async fn recover(shared: &Arc<Shared>) {
    for entry in shared.journal.entries() {
        let subject = Subject {
            vm: entry.process().to_string(),
            name: entry.name.clone(),
            to: "this host".to_owned(),
            dest_vm: entry.name.clone(),
        };
        let record = Arc::new(Record::new(entry.id.clone(), Direction::Incoming, subject));
        match entry.decision {
            Decision::Committed => {
                let running = settle(&entry, |monitor| run(monitor, entry.run)).await;
                match running {
                    Ok(()) => record.end(
                        Outcome::Completed,
                        "the guest runs on this host; the daemon was started anew meanwhile",
                    ),
                    Err(why) => record.end(Outcome::Failed, why),
                }
            }
            Decision::Receiving | Decision::Loading => {
                let loading = entry.decision == Decision::Loading;
                if let Err(error) = settle(&entry, |monitor| give_up(monitor, loading)).await {
                    tracing::info!(vm = entry.name, error, "the waiting VM of a broken migration");
                }
                record.end(
                    Outcome::Failed,
                    "the daemon of the destination was killed; the guest does not run here",
                );
            }
        }
        shared.add_ended(Incoming::ended(record));
        // The source may still have to ask; it does so within moments, and the answer is in memory from now on.
        shared.journal.remove(&entry.id);
    }
}

/// Does something with the VM of an entry, if it still lives.
async fn settle<F>(entry: &Entry, act: impl Fn(Monitor) -> F) -> Result<(), String>
where
    F: Future<Output = Result<(), String>>,
{
    let begun = Instant::now();
    loop {
        if Process::open(entry.process()).is_err() {
            return Err("its VMM has ended".to_owned());
        }
        let result = match Monitor::open_at(&entry.monitor).await {
            Ok(monitor) => act(monitor).await,
            Err(why) => Err(why),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(why) if begun.elapsed() > PATIENCE => return Err(why),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn run(mut monitor: Monitor, run: bool) -> Result<(), String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    if run && monitor.status().await.map_err(words)? != "running" {
        monitor.cont().await.map_err(words)?;
    }
    monitor.ignore_shared(false).await.map_err(words)
}

async fn give_up(mut monitor: Monitor, loading: bool) -> Result<(), String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    if loading {
        return monitor.quit().await.map_err(words);
    }
    monitor.ignore_shared(false).await.map_err(words)
}
