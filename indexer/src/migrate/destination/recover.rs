//! After a daemon was killed in the midst of incoming migrations: finishes what it had decided. Owns nothing that lasts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::migration::{Direction, Outcome};

use super::{ASIDE, Incoming, blocking};
use crate::{
    map::Layout,
    memory::Ram,
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
/// How long a VM may take to be found.
const FOUND: Duration = Duration::from_secs(3);

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
        let over = match entry.decision {
            Decision::Committed => {
                match settle(&entry, |monitor| run(monitor, entry.run)).await {
                    Ok(()) => record.end(
                        Outcome::Completed,
                        "the guest runs on this host; the daemon was started anew meanwhile",
                    ),
                    // It may have run for long: what is left at the source is not what it was when it ended.
                    Err(why) => record.end(
                        Outcome::Completed,
                        format!("the guest was handed over to this host, but does not run here: {why}"),
                    ),
                }
                Some(Decision::Completed)
            }
            Decision::Receiving | Decision::Loading => {
                let loading = entry.decision == Decision::Loading;
                let left = match settle(&entry, |monitor| give_up(monitor, loading)).await {
                    Ok(Left::Waiting) => empty(shared, &entry).await,
                    Ok(Left::ToItself) => Ok(()),
                    Err(why) => Err(why),
                };
                if let Err(error) = left {
                    tracing::info!(vm = entry.name, error, "the waiting VM of a broken migration");
                }
                record.end(
                    Outcome::Failed,
                    "the daemon of the destination was killed; the guest does not run here",
                );
                loading.then_some(Decision::GivenUp)
            }
            Decision::Completed => {
                record.end(Outcome::Completed, "the guest was handed over to this host");
                Some(Decision::Completed)
            }
            Decision::GivenUp => {
                record.end(Outcome::Failed, "the guest was not handed over to this host");
                Some(Decision::GivenUp)
            }
        };
        shared.add_ended(Incoming::ended(record));
        match over {
            // Its source may still have to ask, and may find that this daemon was started anew once more.
            Some(decision) => {
                if let Err(error) = shared.journal.write(&Entry { decision, ..entry }) {
                    tracing::error!(%error, "the journal of migrations cannot be written");
                }
            }
            None => shared.journal.remove(&entry.id),
        }
    }
}

/// Does something with the VM of an entry, if it still lives.
async fn settle<F, T>(entry: &Entry, act: impl Fn(Monitor) -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, String>>,
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
            Ok(done) => return Ok(done),
            Err(why) if begun.elapsed() > PATIENCE => return Err(why),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Gives back the memory of what had come: the VM waits as if nothing had been.
async fn empty(shared: &Shared, entry: &Entry) -> Result<(), String> {
    let begun = Instant::now();
    let vm = loop {
        match shared.host.find(&entry.process().to_string()) {
            Ok(vm) => break vm,
            Err(error) if begun.elapsed() > FOUND => return Err(error.to_string()),
            Err(_) => tokio::time::sleep(PAUSE / 10).await,
        }
    };
    // Holes that are made are no writes: who watches has to look away meanwhile.
    vm.stand_aside(ASIDE).await.map_err(|error| error.to_string())?;
    let descriptor = vm.descriptor();
    let punched = blocking(move || {
        let ram = Ram::open(descriptor.process, &descriptor.regions, &Layout::of(&descriptor.regions))?;
        ram.punch(0..u32::MAX).map_err(|error| error.to_string())
    });
    let punched = punched.await;
    vm.come_back();
    punched
}

async fn run(mut monitor: Monitor, run: bool) -> Result<(), String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    if run && monitor.status().await.map_err(words)? != "running" {
        monitor.cont().await.map_err(words)?;
    }
    monitor.ignore_shared(false).await.map_err(words)
}

/// What became of a VM for which nothing will come any more.
enum Left {
    /// It waits.
    Waiting,
    /// It has ended, or somebody has done something else with it.
    ToItself,
}

async fn give_up(mut monitor: Monitor, loading: bool) -> Result<Left, String> {
    let words = |error: crate::migrate::qmp::QmpError| error.to_string();
    if loading {
        return monitor.quit().await.map(|()| Left::ToItself).map_err(words);
    }
    monitor.ignore_shared(false).await.map_err(words)?;
    let waits = monitor.status().await.map_err(words)? == "inmigrate";
    Ok(if waits { Left::Waiting } else { Left::ToItself })
}
