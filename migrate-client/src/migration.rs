//! A migration, followed to its end by asking for it again and again.
//!
//! Owns the beat of the looks and the patience with a host that does not answer for a moment: these looks are the only
//! requests of this crate that are tried again, as they change nothing. Never ends the migration: it goes on whether
//! somebody looks or not.

use futures::{Stream, stream};
use memdex_wire::migration::Migration;
use tokio::time::{Instant, sleep_until};

use crate::{Client, ClientError, error::Kind, limits, transport::Deadline};

/// The states of a migration, one look after the other.
#[derive(Debug)]
pub struct MigrationStream {
    client: Client,
    id: String,
    /// When it is looked at again; the first time at once.
    next: Option<Instant>,
    /// When the first look began that has not been answered since.
    lost: Option<Instant>,
    known: bool,
    ended: bool,
}

impl MigrationStream {
    /// The state now, a fifth of a second after the one before; `None` after the migration's end or an error. Nothing
    /// is lost if the future is dropped: `tokio::select!` may stand around it.
    ///
    /// # Errors
    /// `is_not_found()` if the host does not know the migration; `is_unreachable()` if it has been out of sight for
    /// [`Timeouts::sight`](crate::Timeouts::sight). The migration goes on without us then.
    pub async fn next(&mut self) -> Option<Result<Migration, ClientError>> {
        if self.ended {
            return None;
        }
        let answer = self.look().await;
        self.ended = answer.as_ref().map_or(true, |migration| migration.phase.is_end());
        Some(answer)
    }

    /// The same as a [`Stream`] for combinators.
    pub fn into_stream(self) -> impl Stream<Item = Result<Migration, ClientError>> + Send {
        stream::unfold(self, |mut states| async move { states.next().await.map(|state| (state, states)) })
    }

    async fn look(&mut self) -> Result<Migration, ClientError> {
        let patience = self.client.timeouts().sight;
        loop {
            if let Some(next) = self.next {
                sleep_until(next).await;
            }
            self.next = Some(Instant::now() + limits::BETWEEN_LOOKS);
            let began = self.lost.unwrap_or_else(Instant::now);
            let left = patience.saturating_sub(began.elapsed());
            let deadline = Deadline::answer(left.clamp(limits::BETWEEN_LOOKS, limits::LOOK));
            let error = match self.client.migration_within(&self.id, deadline).await {
                Ok(migration) => {
                    (self.lost, self.known) = (None, true);
                    return Ok(migration);
                }
                Err(error) => error,
            };
            let (host, id) = (self.client.host().clone(), self.id.clone());
            if self.known && error.is_not_found() {
                return Err(ClientError::new(Kind::Forgotten { host, id }));
            }
            if !error.is_retryable() {
                return Err(error);
            }
            self.lost = Some(began);
            if began.elapsed() >= patience {
                let why = error.cause();
                return Err(ClientError::new(Kind::LostSight { host, id, after: patience, why }));
            }
            tracing::debug!(%error, "the migration is out of sight");
        }
    }
}

impl Client {
    /// Looks at a migration again and again until it has ended. Nothing is sent yet.
    #[must_use]
    pub fn watch_migration(&self, id: &str) -> MigrationStream {
        let (client, id) = (self.clone(), id.to_owned());
        MigrationStream { client, id, next: None, lost: None, known: false, ended: false }
    }

    /// Waits for the end of a migration, and returns it as it was then. How it ended is in [`Migration::outcome`].
    ///
    /// # Errors
    /// As [`MigrationStream::next`].
    pub async fn follow_migration(
        &self,
        id: &str,
        mut on_progress: impl FnMut(&Migration),
    ) -> Result<Migration, ClientError> {
        let mut states = self.watch_migration(id);
        loop {
            let state = states.look().await?;
            on_progress(&state);
            if state.phase.is_end() {
                return Ok(state);
            }
        }
    }
}
