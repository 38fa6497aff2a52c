//! After a daemon was killed in the midst of incoming migrations: finishes what it had decided. Owns nothing that lasts.
//!
//! What is decided is known at once, so that a source that asks gets its answer; what is left to be done with the VMM is done meanwhile.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::migration::{Direction, Outcome};

use super::{
    Incoming,
    conversation::{ASIDE, blocking},
};
use crate::{
    map::Layout,
    memory::Ram,
    migrate::{
        Shared,
        journal::{Decision, Entry},
        monitor::Monitor,
        qmp::QmpError,
        record::{Record, Subject},
    },
    watch::process::Process,
};

/// The guard of the daemon before may still be busy with the monitor.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Goes through the journal. Sources that ask get an answer as soon as this returns.
pub(crate) fn recover(shared: &Arc<Shared>) {
    for entry in shared.journal.entries() {
        let subject = Subject {
            vm: entry.process().to_string(),
            name: entry.name.clone(),
            to: "this host".to_owned(),
            dest_vm: entry.name.clone(),
        };
        let record = Arc::new(Record::new(entry.id.clone(), Direction::Incoming, subject));
        match entry.decision {
            // Whatever has become of the guest since: it is ours, and nobody else may let it run.
            Decision::Committed | Decision::Completed => {
                record.end(
                    Outcome::Completed,
                    "the guest is on this host; its memdexd was started anew meanwhile",
                );
            }
            // It has not been let run, and never will be.
            Decision::Receiving | Decision::Loading | Decision::GivenUp => {
                record.end(
                    Outcome::Failed,
                    "the memdexd of the destination was killed; the guest does not run here",
                );
            }
        }
        shared.add_ended(Incoming::ended(record));
        let shared = Arc::clone(shared);
        shared.clone().tasks.spawn(async move { finish(&shared, entry).await });
    }
}

/// Does what is left to be done with the VMM of an entry.
async fn finish(shared: &Shared, entry: Entry) {
    let done = match entry.decision {
        Decision::Committed => settle(&entry, |monitor| run(monitor, entry.run)).await,
        Decision::Loading => {
            settle(&entry, |mut monitor| async move { monitor.quit().await.map_err(|error| words(&error)) })
                .await
        }
        Decision::Receiving => {
            let given_back = settle(&entry, |mut monitor| async move {
                monitor.ignore_shared(false).await.map_err(|error| words(&error))
            })
            .await;
            empty(shared, &entry).await;
            given_back
        }
        Decision::Completed | Decision::GivenUp => return,
    };
    match done {
        Ok(()) => {
            let decision =
                if entry.decision == Decision::Committed { Decision::Completed } else { Decision::GivenUp };
            if let Err(error) = shared.journal.write(&Entry { decision, ..entry }) {
                tracing::warn!(%error, "the journal of migrations cannot be written");
            }
        }
        Err(why) => tracing::warn!(vm = entry.name, why, "the VM of a migration that was broken off"),
    }
}

/// Gives back the memory that had come.
async fn empty(shared: &Shared, entry: &Entry) {
    let begun = Instant::now();
    let id = entry.process().to_string();
    while begun.elapsed() < PATIENCE && Process::open(entry.process()).is_ok() {
        if let Ok(vm) = shared.host.find(&id) {
            // Holes that are made are no writes: who watches has to look away meanwhile.
            if vm.stand_aside(ASIDE).await.is_err() {
                continue;
            }
            let descriptor = vm.descriptor();
            let emptied = blocking(move || {
                let layout = Layout::of(&descriptor.regions);
                let ram = Ram::open(descriptor.process, &descriptor.regions, &layout)?;
                ram.punch(0..u32::MAX).map_err(|error| error.to_string())
            });
            let emptied = emptied.await;
            vm.come_back();
            if let Err(why) = emptied {
                tracing::warn!(vm = entry.name, why, "the memory of a migration that was broken off");
            }
            return;
        }
        tokio::time::sleep(PAUSE).await;
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
            return Ok(());
        }
        let result = match Monitor::open_at(&entry.monitor, entry.process()).await {
            Ok(monitor) => act(monitor).await,
            Err(why) => Err(why),
        };
        match result {
            Ok(()) => return Ok(()),
            // A guest that is ours is not given up for as long as it is there.
            Err(why) if begun.elapsed() > PATIENCE && entry.decision != Decision::Committed => {
                return Err(why);
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn run(mut monitor: Monitor, run: bool) -> Result<(), String> {
    // Anything but this means that it has run already.
    let waits = ["paused", "inmigrate", "prelaunch", "postmigrate"];
    if run && waits.contains(&monitor.status().await.map_err(|error| words(&error))?.as_str()) {
        monitor.cont().await.map_err(|error| words(&error))?;
    }
    monitor.ignore_shared(false).await.map_err(|error| words(&error))
}

fn words(error: &QmpError) -> String {
    error.to_string()
}
