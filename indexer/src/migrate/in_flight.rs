//! Contents that some migration to this host has asked for and that have not come yet, so that what several moving VMs have in common crosses once.
//!
//! Owns who asked for what. A migration that finds its content here waits for a moment instead of asking too; should it not come, it asks.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use memdex_wire::transfer::Name;

use crate::map::MapId;

/// See the module.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<HashMap<Name, MapId>>);

impl InFlight {
    /// Says that `session` is about to ask for a content. False if another one has done so already.
    pub fn claim(&self, content: Name, session: MapId) -> bool {
        self.claim_all(std::iter::once(content), session)[0]
    }

    /// The same of many, one answer for each.
    pub fn claim_all(&self, contents: impl Iterator<Item = Name>, session: MapId) -> Vec<bool> {
        let mut all = self.lock();
        contents.map(|content| *all.entry(content).or_insert(session) == session).collect()
    }

    /// Says that it has come, or will not come.
    pub fn done(&self, content: &Name, session: MapId) {
        self.all_done(std::iter::once(*content), session);
    }

    /// The same of many.
    pub fn all_done(&self, contents: impl Iterator<Item = Name>, session: MapId) {
        let mut all = self.lock();
        for content in contents {
            if all.get(&content) == Some(&session) {
                all.remove(&content);
            }
        }
    }

    /// Says that `session` has ended.
    pub fn forget(&self, session: MapId) {
        self.lock().retain(|_, owner| *owner != session);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, MapId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asks_and_the_others_wait_until_it_is_done_or_gone() {
        let all = InFlight::default();
        let (a, b) = (MapId(1), MapId(2));
        let content = Name::new([1; 16]);
        assert!(all.claim(content, a) && all.claim(content, a) && !all.claim(content, b));
        all.done(&content, b);
        assert!(!all.claim(content, b));
        all.done(&content, a);
        assert!(all.claim(content, b));
        all.forget(b);
        assert!(all.claim(content, a));
    }
}
