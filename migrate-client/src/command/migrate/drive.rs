//! Takes a migration from its start to its end, with somebody at the keyboard who may want it to stop.
//!
//! The first signal asks the host to call it off, the second one leaves at once. Every wait after a signal has a bound,
//! but for one: once it is too late to abort, the end is near, and it is worth knowing.

use std::time::Duration;

use futures::{
    FutureExt,
    future::{BoxFuture, OptionFuture},
};
use memdex_wire::migration::{Migration, MigrationRequest};
use migrate_client::{Client, ClientError};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    command::{Failure, Signals},
    output::told,
    progress::migration::MigrationProgress,
};

/// How long a migration may take to end, or to begin, after it was to be called off.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time between two attempts to have it called off, if the host does not answer.
const AGAIN: Duration = Duration::from_millis(500);

type Answer<'a> = BoxFuture<'a, Result<Migration, ClientError>>;

/// One migration's way.
pub(super) struct Driver<'a> {
    client: &'a Client,
    signals: Signals,
    progress: &'a mut MigrationProgress,
    /// When somebody wanted it to stop.
    interrupted: Option<Instant>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(client: &'a Client, signals: Signals, progress: &'a mut MigrationProgress) -> Self {
        Self { client, signals, progress, interrupted: None }
    }

    /// Whether somebody wanted it to stop.
    pub(super) const fn is_interrupted(&self) -> bool {
        self.interrupted.is_some()
    }

    /// Begins it. A signal meanwhile is kept in mind: a migration can be called off when its id is known.
    pub(super) async fn start(&mut self, request: &MigrationRequest) -> Result<Migration, Failure> {
        const UNSURE: &str = "it may begin all the same: `memdex migrations` tells";
        let mut begun = std::pin::pin!(self.client.migrate(request));
        loop {
            tokio::select! {
                biased;
                begun = &mut begun => return match begun {
                    Err(error) if self.is_interrupted() => Err(self.leave(&error.to_string())),
                    begun => Ok(begun?),
                },
                Some(()) = self.signals.recv() => {
                    if self.is_interrupted() {
                        return Err(self.leave(UNSURE));
                    }
                    self.interrupted = Some(Instant::now());
                    self.progress.say("interrupted: as soon as the host has answered the migration is called off; once more leaves at once");
                }
                () = too_long(self.interrupted) => {
                    return Err(self.leave(&format!("the host has not answered: {UNSURE}")));
                }
            }
        }
    }

    /// Follows it to its end.
    pub(super) async fn follow(&mut self, begun: Migration) -> Result<Migration, Failure> {
        let client = self.client;
        let id = begun.id.clone();
        let hint = format!("`memdex migrations {}` shows how", told(&id));
        self.progress.show(&begun);
        if begun.phase.is_end() {
            return Ok(begun);
        }
        let mut abort = OptionFuture::from(self.is_interrupted().then(|| ask(client, &id)));
        let mut too_late = false;
        let mut states = client.watch_migration(&id);
        loop {
            tokio::select! {
                biased;
                Some(()) = self.signals.recv() => {
                    if self.is_interrupted() {
                        let after = if too_late { "" } else { " unless it can still be called off" };
                        return Err(self.leave(&format!("the migration goes on at the host{after}: {hint}")));
                    }
                    self.interrupted = Some(Instant::now());
                    self.progress.say("interrupted: the host is asked to call the migration off; once more leaves at once");
                    abort = Some(ask(client, &id)).into();
                }
                Some(answer) = &mut abort => {
                    abort = None.into();
                    match answer {
                        Ok(_) => self.progress.say("the migration is being called off"),
                        Err(error) if error.is_conflict() => {
                            too_late = true;
                            self.progress.say(&format!("it is too late to call it off, so its end is waited for: {error}"));
                        }
                        Err(error) if error.is_retryable() => {
                            abort = Some(sleep(AGAIN).then(|()| client.abort_migration(&id)).boxed()).into();
                        }
                        Err(error) => self.progress.say(&format!("it cannot be called off: {error}")),
                    }
                }
                state = states.next() => {
                    let Some(state) = state.transpose()? else {
                        return Err(Failure::Failed(format!("the end of the migration was not seen: {hint}")));
                    };
                    self.progress.show(&state);
                    if state.phase.is_end() {
                        return Ok(state);
                    }
                }
                () = too_long(self.interrupted), if !too_late => {
                    return Err(self.leave(&format!("the migration has not ended within {PATIENCE:?} and goes on at the host: {hint}")));
                }
            }
        }
    }

    fn leave(&self, sentence: &str) -> Failure {
        self.progress.finish();
        self.progress.say(sentence);
        Failure::Interrupted
    }
}

fn ask<'a>(client: &'a Client, id: &'a str) -> Answer<'a> {
    client.abort_migration(id).boxed()
}

/// Ends when nobody wants to wait any more.
async fn too_long(interrupted: Option<Instant>) {
    match interrupted {
        Some(at) => sleep_until(at + PATIENCE).await,
        None => std::future::pending().await,
    }
}
