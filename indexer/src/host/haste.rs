//! Somebody waits for the VM's map to be complete and has said so: a migration. What the guest may pay for being watched is no reason to wait then.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Counts who is in haste.
#[derive(Debug, Default)]
pub(crate) struct Hurried(Arc<AtomicUsize>);

/// For as long as it lives, pages are armed and read as soon as they are written.
#[derive(Debug)]
pub(crate) struct Haste(Arc<AtomicUsize>);

impl Hurried {
    pub(crate) fn begin(&self) -> Haste {
        self.0.fetch_add(1, Relaxed);
        Haste(Arc::clone(&self.0))
    }

    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Relaxed) > 0
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haste_ends_with_the_last_who_is_in_it() {
        let hurried = Hurried::default();
        let (first, second) = (hurried.begin(), hurried.begin());
        drop(first);
        assert!(hurried.is_so());
        drop(second);
        assert!(!hurried.is_so());
    }
}
