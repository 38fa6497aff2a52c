//! The first words to the destination. Owns opening the control connection and keeping it alive; never changes anything on either host.

use std::{sync::Arc, time::Duration};

use memdex_wire::{
    migration::MigrationRequest,
    page::PageState,
    transfer::{Hello, Ready, ToDestination, ToSource},
};
use migrate_client::{ChannelKind, Client};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{Stop, switch_over::out_of_turn};
use crate::{
    host::Vm,
    map::MapSnapshot,
    migrate::{
        destination,
        link::{self, BEAT, Counted, Frames, LinkError, Speaker},
        record::Record,
    },
};

/// Time for the destination to make ready: it may have to hash what is in the RAM file.
const MAKE_READY: Duration = Duration::from_secs(120);

/// What is going to move.
pub(super) fn hello(
    vm: &Vm,
    snapshot: &MapSnapshot,
    request: &MigrationRequest,
    qemu: String,
    backends: Vec<String>,
    dry_run: bool,
) -> Hello {
    let counts = snapshot.counts();
    Hello {
        name: vm.name().to_owned(),
        dest_vm: request.dest_vm.clone().unwrap_or_else(|| vm.name().to_owned()),
        dest_qmp: request.dest_qmp.clone(),
        regions: snapshot.layout().regions().iter().map(|region| u64::from(region.pages)).collect(),
        backends,
        populated: counts.current
            + snapshot
                .views(0..snapshot.pages())
                .filter(|(_, view)| view.state == PageState::Stale && view.fingerprint.is_some())
                .count() as u64,
        qemu,
        key: destination::key(),
        dry_run,
    }
}

pub(super) async fn connect(
    client: &Client,
    record: &Record,
    stop: &CancellationToken,
) -> Result<(Speaker, Frames<ToSource>), Stop> {
    let channel = client.open_channel(record.id(), ChannelKind::Control).await?;
    Ok(link::open(Counted::new(channel, Arc::clone(&record.wire)), stop.clone(), link::swallow))
}

pub(super) async fn introduce(
    speaker: &Speaker,
    frames: &mut Frames<ToSource>,
    hello: &Hello,
    abort: &CancellationToken,
) -> Result<Ready, Stop> {
    speaker.say(&ToDestination::Hello(hello.clone())).await?;
    let answer = async {
        loop {
            match timeout(BEAT, frames.recv()).await {
                Ok(answer) => return answer.unwrap_or(Err(LinkError::Closed)),
                // It is busy making ready; as long as it answers to this it is there.
                Err(_) => speaker.say(&ToDestination::Ping).await?,
            }
        }
    };
    let answer = tokio::select! {
        answer = timeout(MAKE_READY, answer) => answer,
        () = abort.cancelled() => return Err(Stop::Aborted("it was called off".to_owned())),
    };
    match answer {
        Ok(Ok(ToSource::Ready(ready))) => Ok(ready),
        Ok(Ok(ToSource::Fail(why))) => {
            Err(Stop::failed(format!("the destination refuses: {}", migrate_client::printable(&why))))
        }
        Ok(Ok(_)) => Err(out_of_turn()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Stop::failed(format!(
            "the destination was not ready within {} seconds",
            MAKE_READY.as_secs()
        ))),
    }
}

/// Shows the destination that we live, and so learns that it does.
pub(super) fn keep_alive(speaker: Speaker, stop: CancellationToken) {
    tokio::spawn(async move {
        let mut beat = interval(BEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = stop.cancelled() => return,
            }
            if speaker.say(&ToDestination::Ping).await.is_err() {
                return;
            }
        }
    });
}
