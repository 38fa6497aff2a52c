//! Counting system calls that discard memory, so that the daemon can tell whether one is under way.

use core::mem::size_of;

/// Of one tracked process. It outlives a change of the VM's layout, since a call may begin before the change and end after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Calls {
    /// Which tracking of the process this is; tells a call counted here from one counted by an earlier tracking.
    pub epoch: u64,
    /// Calls begun. Only ever grows.
    pub entered: u64,
    /// Calls ended. Only ever grows, and never past `entered`.
    pub exited: u64,
}

/// A call a thread has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct InFlight {
    /// [`Calls::epoch`] at its beginning.
    pub epoch: u64,
    /// 1 if it was counted, 0 if it cannot touch the VM's memory.
    pub counted: u64,
}

const _: () = assert!(size_of::<Calls>() == 24 && size_of::<InFlight>() == 16); // no hidden padding
