//! The functions that a daemon spends its time in, each with inputs that are the same every time.
//!
//! Owns the one list of them, [`ALL`], and what they are given. How they are looked at is for others: `cargo xtask instructions` counts what the processor
//! executes in them, `cargo bench -p memdex-hot` takes the time. Nothing here asks the kernel for anything but memory.

mod contents;
mod hashing;
mod index;
mod map;
mod picture;
mod wire;

use std::{any::Any, fmt};

/// What is measured: all that was made before is in it. What it returns is dropped when nobody measures any more.
pub type Work = Box<dyn FnOnce() -> Box<dyn Any>>;

/// A function that is worth watching.
#[derive(Clone, Copy)]
pub struct Hot {
    /// Its name, for commands and tables.
    pub name: &'static str,
    /// What is one operation of it, in a person's words.
    pub operation: &'static str,
    /// Operations in one go.
    pub operations: u32,
    prepare: fn() -> Work,
}

impl fmt::Debug for Hot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hot").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Hot {
    /// Makes the inputs.
    #[must_use]
    pub fn prepare(&self) -> Work {
        (self.prepare)()
    }
}

/// All of them, from the bytes of a page to the wire.
pub const ALL: &[Hot] = &[
    hashing::PAGES,
    hashing::ZERO_PAGES,
    map::PUBLISH_FIRST,
    map::PUBLISH_AGAIN,
    map::PUBLISH_BESIDE_SNAPSHOT,
    map::MARK_STALE,
    map::QUEUE,
    map::RECORDS,
    index::COME,
    index::CHANGE,
    index::GO,
    index::LOOK_UP,
    picture::BUILD,
    picture::APPLY,
    picture::CONTAINS,
    picture::DIFF_FIRST,
    picture::DIFF_TOUCHED,
    picture::DIFF_CHANGED,
    wire::ENCODE,
    wire::DECODE,
];

/// The function of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Hot> {
    ALL.iter().find(|hot| hot.name == name)
}

/// Wraps what is measured, and what it is given.
fn work<R: 'static>(work: impl FnOnce() -> R + 'static) -> Work {
    Box::new(move || Box::new(work()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_has_a_name_of_its_own_and_does_its_work() {
        let names: BTreeSet<_> = ALL.iter().map(|hot| hot.name).collect();
        assert_eq!(names.len(), ALL.len());
        for hot in ALL {
            assert!(hot.operations > 0 && find(hot.name).is_some(), "{}", hot.name);
            // Each checks by itself that it did what it is for.
            hot.prepare()();
        }
    }
}
