//! What holds the programs to where they are attached. Owns letting go of it, all at once.
//!
//! The kernel waits a grace period (tens of milliseconds) for each tracepoint that loses its last program, one after the other for a process that just ends: a second and more for all
//! of them. Those who wait at the same time wait for the same one.

use std::{
    any::Any,
    sync::{Mutex, PoisonError},
};

/// See the module.
#[derive(Default)]
pub(super) struct Attached(Mutex<Vec<Box<dyn Any + Send>>>);

impl Attached {
    /// Keeps a link until all are let go.
    pub(super) fn keep(&self, link: impl Any + Send) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(link));
    }

    /// Detaches everything. Returns when that is done.
    pub(super) fn let_go(&self) {
        let links = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        std::thread::scope(|scope| {
            for link in links {
                // A link for which there is no thread is dropped here.
                let _ =
                    std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, move || drop(link));
            }
        });
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.let_go();
    }
}
