//! Live migration with real guests: `memdex migrate` moves a running VM, and the guest's own check of its memory never fails.
//!
//! - [`there_and_back`]: nothing goes wrong.
//! - [`kills`], [`broken_link`], [`no_convergence`], [`calling_off`], [`no_room`]: something does. What has to hold afterwards, whatever it was, is
//!   in [`stage`]. `MEMDEX_FAULT_RUNS` says how often each is tried, `MEMDEX_FAULT_SEED` at which moments.
//! - [`lying_source`], [`lying_destination`]: the other end is a [`liar`].
//! - [`paused`]: a guest that somebody else pauses.
//! - [`direct_io`]: a guest whose disk is opened with `cache=none`.
//! - [`several`]: guests that move together. [`settings`]: what a migration can be told. [`example`]: another tool moves a guest.

mod broken_link;
mod calling_off;
mod direct_io;
mod example;
mod hosts;
mod kills;
mod liar;
mod lying_destination;
mod lying_source;
mod no_convergence;
mod no_room;
mod paused;
mod settings;
mod several;
mod stage;
mod there_and_back;
