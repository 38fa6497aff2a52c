//! Who runs the guest? Asked when the link broke in the one moment in which the source cannot know.
//!
//! # Why the guest never runs twice
//!
//! The right to run is one thing, and it is somewhere. It begins at the source. The source gives it away by *saying so* ([`HandOver`]), and once it has
//! begun to say so it never takes it back by itself: not after a time-out, not after a restart, not because the link is gone. The destination lets the guest run
//! only after it has read these words, and before it acts on them it decides, once and for all, under one lock: *committed* or *aborted*, whichever
//! comes first. Everything that could call the migration off there (the link's end, silence, a stop of the daemon, a request) goes through that same
//! decision. So there are three cases, and no fourth:
//!
//! 1. The source has not begun to hand over. The destination cannot have read it and never will: the source may let the guest run.
//! 2. It has, and the destination says that it runs, or that it has committed. The source's part is over.
//! 3. It has, and the destination does not answer. Nobody at the source can know which it is. It asks again, for as long as it takes, with a request that
//!    *itself* aborts what has not been committed; so any answer that knows of the migration decides (one of a host that was started anew does not). Until then the guest stands still at the source, which is
//!    the price of never running twice; it takes a link that breaks within one round trip, and lasts until the link is back.
//!
//! A destination whose daemon was killed in that moment answers when it is back: what it committed to is written down before it acts (see
//! [`super::journal`]), and its own guard lets the guest run meanwhile.
//!
//! [`HandOver`]: memdex_wire::transfer::ToDestination::HandOver

use std::{path::PathBuf, time::Duration};

use memdex_wire::migration::{Migration, Phase};
use migrate_client::{Client, ClientError, ClientOptions, HostUrl, Timeouts, Token};
use serde::{Deserialize, Serialize};

/// Shortest and longest time between two questions.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Destination {
    /// Where.
    pub url: String,
    /// The token.
    pub token: Option<String>,
    /// The authorities to trust.
    pub ca: Option<PathBuf>,
    /// The migration.
    pub id: String,
}

/// Who runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The destination does, or will.
    Destination,
    /// The destination never will.
    Source,
}

/// Asks until there is an answer. `say` is told, now and then, that there is none yet.
pub async fn who_runs(destination: &Destination, mut say: impl FnMut(String)) -> Verdict {
    let mut pause = PAUSE.0;
    loop {
        match ask(destination).await {
            Ok(Some(verdict)) => return verdict,
            Ok(None) => pause = PAUSE.0,
            Err(error) => {
                if pause == PAUSE.0 || pause == PAUSE.1 {
                    say(format!(
                        "the link broke while the guest was being handed over, and only the destination knows whether it runs there; it stays paused here until the destination answers ({error})"
                    ));
                }
                pause = (pause * 2).min(PAUSE.1);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// One question: calls the migration off unless it is too late for that.
async fn ask(destination: &Destination) -> Result<Option<Verdict>, ClientError> {
    let url: HostUrl = destination.url.parse().unwrap_or_default();
    let token = destination.token.as_deref().map(Token::new).transpose()?;
    let timeouts = Timeouts { connect: PAUSE.1, answer: PAUSE.1, ..Timeouts::default() };
    let client = Client::new(url, ClientOptions { token, ca: destination.ca.clone(), timeouts })?;
    match client.abort_migration(&destination.id).await {
        Ok(migration) => Ok(verdict(&migration)),
        Err(error) if error.is_conflict() => Ok(verdict(&client.migration(&destination.id).await?)),
        Err(error) => Err(error),
    }
}

fn verdict(migration: &Migration) -> Option<Verdict> {
    match migration.phase {
        Phase::Completed => Some(Verdict::Destination),
        Phase::Aborted | Phase::Failed => Some(Verdict::Source),
        // It is about to let the guest run, or about to give up.
        _ => None,
    }
}
