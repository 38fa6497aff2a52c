//! What this host holds, for those who follow it. Owns the sharing of one picture among all that read it at the same time.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use memdex_wire::picture::{Change, Position};
use tokio::sync::Mutex;

use super::Host;
use crate::picture::{Picture, build, log::Listening};

/// Seconds for which a picture is held, besides what a slow reader takes for it, and the bytes a second that it has to take.
const HELD: u64 = 30;
const SLOWEST: u64 = 256 << 10;

/// The picture that is just being sent, if anybody reads one.
pub(super) type Current = Mutex<Option<(Weak<Picture>, Position)>>;

impl Host {
    /// Begins to note what comes and goes, for as long as the answer exists.
    pub(crate) fn listen(&self) -> Listening {
        self.shared.index.changes().listen()
    }

    /// What came and went after a position, and the position after that; `None` if it is not known any more.
    pub(crate) fn changes_since(&self, position: Position) -> Option<(Position, Vec<Change>)> {
        self.shared.index.changes().since(position).ok()
    }

    /// What this host holds: every content that a page holds, or held when it was last read. `None` if the daemon is ending. The caller has to
    /// [listen](Host::listen).
    pub(crate) async fn picture(&self) -> Option<(Weak<Picture>, Position)> {
        // Whoever comes while it is made waits for it instead of making another one.
        let mut current = self.shared.picture.lock().await;
        if let Some((picture, position)) = &*current
            && picture.strong_count() > 0
            && self.changes_since(*position).is_some()
        {
            return Some((Weak::clone(picture), *position));
        }
        let host = self.clone();
        let (picture, position) = tokio::task::spawn_blocking(move || host.make_picture()).await.ok()??;
        let picture = Arc::new(picture);
        let weak = Arc::downgrade(&picture);
        *current = Some((Weak::clone(&weak), position));
        // Held for those who read it, but not longer than a reader may take.
        let time = Duration::from_secs(HELD + picture.bytes() / SLOWEST);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            drop(picture);
        });
        Some((weak, position))
    }

    fn make_picture(&self) -> Option<(Picture, Position)> {
        let shared = &self.shared;
        // First the position, then the maps: see the log.
        let position = shared.index.changes().position();
        let sources = shared.registry.sources();
        let pages = sources.iter().map(|source| source.contents()).sum();
        let picture = build(getrandom::u64().ok()?, pages, |each| {
            for source in &sources {
                source.each_content(&mut |_, fingerprint| each(fingerprint));
            }
        });
        Some((picture.snug(), position))
    }
}
