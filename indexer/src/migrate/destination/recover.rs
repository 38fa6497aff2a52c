//! After a daemon was killed in the midst of incoming migrations: finishes what it had decided. Owns nothing that lasts.
//!
//! What is decided is known at once, so that a source that asks gets its answer; what is left to be done with the VMM is done meanwhile.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use memdex_wire::migration::{Direction, Outcome};
use rustix::process::{Signal, pidfd_send_signal};

use super::{
    Incoming,
    conversation::{ASIDE, blocking},
};
use crate::{
    host::Vm,
    map::Layout,
    memory::Ram,
    migrate::{
        Shared,
        guard::Step,
        journal::{Decision, Entry},
        monitor::Monitor,
        qmp::QmpError,
        record::{Record, Subject},
    },
    watch::process::Process,
};

const NOT_HERE: &str = "the memdexd of the destination was killed; the guest does not run here";
/// The guard of the daemon before may still be busy with the monitor.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for discovery to find a VM.
const FOUND: Duration = Duration::from_secs(10);

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
        let clearing = matches!(entry.decision, Decision::Receiving | Decision::Loading | Decision::Ending);
        match entry.decision {
            // Who asks is told once its VMM has ended.
            Decision::Ending => {}
            // Whatever has become of the guest since: it is ours, and nobody else may let it run.
            Decision::Committed | Decision::Completed => {
                record.end(
                    Outcome::Completed,
                    "the guest is on this host; its memdexd was started anew meanwhile",
                );
            }
            // It has not been let run, and never will be.
            Decision::Receiving | Decision::Loading | Decision::GivenUp => {
                record.end(Outcome::Failed, NOT_HERE);
            }
        }
        let incoming = Arc::new(Incoming::broken_off(record, clearing));
        // Nothing else begins with its VM before it is as if this had never been.
        shared.add_broken_off(&incoming, entry.process().to_string());
        let shared = Arc::clone(shared);
        shared.clone().tasks.spawn(async move {
            if entry.decision == Decision::Ending {
                end(&entry).await;
                incoming.record.end(Outcome::Failed, NOT_HERE);
            }
            finish(&shared, entry).await;
            incoming.cleared();
        });
    }
}

/// Does what is left to be done with the VMM of an entry.
async fn finish(shared: &Shared, entry: Entry) {
    let done = match entry.decision {
        Decision::Committed => settle(&entry, |monitor| run(monitor, &entry)).await,
        // It cannot wait for another guest. If it runs nobody has let it who knew: its source does not believe that it is here.
        Decision::Loading => {
            settle(&entry, |mut monitor| async move { monitor.quit().await.map_err(|error| words(&error)) })
                .await
        }
        Decision::Ending => Ok(()),
        Decision::Receiving => settle(&entry, |monitor| empty(shared, &entry, monitor)).await,
        Decision::Completed | Decision::GivenUp => return,
    };
    match (done, entry.decision) {
        // Nobody asks about one of which no device state was ever loaded.
        (Ok(()), Decision::Receiving) => shared.journal.remove(&entry.id),
        (Ok(()), decision) => {
            let decision =
                if decision == Decision::Committed { Decision::Completed } else { Decision::GivenUp };
            if let Err(error) = shared.journal.write(&Entry { decision, ..entry }) {
                tracing::warn!(%error, "the journal of migrations cannot be written");
            }
        }
        (Err(why), _) => tracing::warn!(vm = entry.name, why, "the VM of a migration that was broken off"),
    }
}

/// Whether a VMM waits for a guest, and none is on its way. Else its memory is somebody's: it was used for something else while no daemon was here.
async fn waits(monitor: &mut Monitor) -> Result<bool, String> {
    let state = monitor.status().await.map_err(|error| words(&error))?;
    let (migration, _) = monitor.migration().await.map_err(|error| words(&error))?;
    Ok(state == "inmigrate" && matches!(migration.as_str(), "" | "none"))
}

/// Ends a VMM for certain. It may take long if a device hangs, and nobody may think that it has before it has.
async fn end(entry: &Entry) {
    while let Ok(process) = Process::open(entry.process()) {
        let _ = pidfd_send_signal(process.pidfd(), Signal::KILL);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Gives back the settings of a VMM that still waits, and the memory that had come.
async fn empty(shared: &Shared, entry: &Entry, mut monitor: Monitor) -> Result<(), String> {
    if !waits(&mut monitor).await? {
        tracing::warn!(
            vm = entry.name,
            "something else was done with this VM since its migration was broken off: its memory is left alone"
        );
        return Ok(());
    }
    undo(&mut monitor, entry, |_| true).await?;
    // Nobody else can tell it to take in a guest as long as we have the monitor (if it has no other one).
    let Some(vm) = found(shared, entry).await else {
        tracing::warn!(vm = entry.name, "this VM is not watched: the memory that had come is not given back");
        return Ok(());
    };
    // Holes that are made are no writes: who watches has to look away meanwhile.
    vm.stand_aside(ASIDE).await.map_err(|error| error.to_string())?;
    let descriptor = vm.descriptor();
    let still = waits(&mut monitor).await;
    let emptied = if still == Ok(true) {
        blocking(move || {
            let layout = Layout::of(&descriptor.regions);
            let ram = Ram::open(descriptor.process, &descriptor.regions, &layout)?;
            ram.punch(0..u32::MAX).map_err(|error| error.to_string())
        })
        .await
    } else {
        Ok(())
    };
    vm.come_back();
    emptied?;
    if still? && !waits(&mut monitor).await? {
        // Another guest has begun to come in that very moment, through another monitor: its memory has holes now. Its source still has it.
        tracing::error!(
            vm = entry.name,
            "another migration into this VM began while the memory of the last one was given back: it is ended"
        );
        return monitor.quit().await.map_err(|error| words(&error));
    }
    Ok(())
}

/// The VM of an entry, once discovery has found it.
async fn found(shared: &Shared, entry: &Entry) -> Option<Arc<Vm>> {
    let (begun, id) = (Instant::now(), entry.process().to_string());
    loop {
        match shared.host.find(&id) {
            Ok(vm) => return Some(vm),
            Err(_) if begun.elapsed() > FOUND || Process::open(entry.process()).is_err() => return None,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
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

async fn run(mut monitor: Monitor, entry: &Entry) -> Result<(), String> {
    // Anything but this means that it has run already.
    let waits = ["paused", "inmigrate", "prelaunch"];
    if entry.run && waits.contains(&monitor.status().await.map_err(|error| words(&error))?.as_str()) {
        monitor.cont().await.map_err(|error| words(&error))?;
    }
    // Whether it runs is settled.
    undo(&mut monitor, entry, |step| step.command != "cont").await
}

/// Gives a VMM back the settings it was found with. The guard of the daemon before may have done so.
async fn undo(monitor: &mut Monitor, entry: &Entry, which: impl Fn(&Step) -> bool) -> Result<(), String> {
    for step in entry.undo.iter().filter(|step| which(step)) {
        monitor.tell_step(step).await.map_err(|error| words(&error))?;
    }
    Ok(())
}

fn words(error: &QmpError) -> String {
    error.to_string()
}
