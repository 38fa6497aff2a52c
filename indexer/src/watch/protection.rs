//! What protects the pages of a VM: a userfaultfd, page by page, or soft-dirty bits, all at once.
//!
//! Owns nothing but the choice: what differs is whether arming is done for each batch, or was done for everything by the last clearing.

use std::ops::Range;

use super::{
    ebpf::Hooks,
    pagemap::{Pagemap, ScanError},
    softdirty::{self, SoftDirty},
    userfault::{self, ArmError, UserFault},
};
use crate::{units::Hva, vm::descriptor::ProcessId};

/// See the module.
#[derive(Debug)]
pub(super) enum Protection {
    UserFault(UserFault),
    /// And why there is no userfaultfd.
    SoftDirty(SoftDirty, String),
}

impl Protection {
    /// The best that this kernel has for a process.
    ///
    /// # Errors
    /// A sentence, if there is none.
    pub(super) fn attach(process: ProcessId, hooks: &Hooks) -> Result<Self, String> {
        let Err(no_scan) = Pagemap::probe() else {
            return userfault::attach(process).map(Self::UserFault).map_err(|error| error.to_string());
        };
        if !softdirty::wanted() {
            return Err(no_scan.to_string());
        }
        let because = |reason: String| format!("{no_scan}; soft-dirty bits can't stand in for it: {reason}");
        hooks.beside_soft_dirty().map_err(because)?;
        softdirty::unpreempted().map_err(because)?;
        let bits = SoftDirty::open(process).map_err(|error| because(error.to_string()))?;
        Ok(Self::SoftDirty(bits, no_scan.to_string()))
    }

    /// The bits, if these are what protects.
    pub(super) fn soft_dirty(&self) -> Option<&SoftDirty> {
        match self {
            Self::UserFault(_) => None,
            Self::SoftDirty(bits, _) => Some(bits),
        }
    }

    /// Makes a range watchable; nothing is armed yet.
    pub(super) fn register(&self, range: Range<Hva>) -> Result<(), ArmError> {
        match self {
            Self::UserFault(userfault) => userfault.register(range),
            Self::SoftDirty(bits, _) => bits.register(range),
        }
    }

    /// Stops watching it.
    pub(super) fn unregister(&self, range: Range<Hva>) -> Result<(), ArmError> {
        match self {
            Self::UserFault(userfault) => userfault.unregister(range),
            Self::SoftDirty(bits, _) => {
                bits.unregister(&range);
                Ok(())
            }
        }
    }

    /// Arms a range. Where everything is armed at once it has been: who asks has seen to it that no page of it is spent.
    pub(super) fn arm(&self, range: Range<Hva>) -> Result<(), ArmError> {
        match self {
            Self::UserFault(userfault) => userfault.arm(range),
            Self::SoftDirty(..) => Ok(()),
        }
    }

    /// Whether what is mapped in a range is still what was registered.
    pub(super) fn watched(&self, pagemap: &Pagemap, range: Range<Hva>) -> Result<(), ScanError> {
        match self {
            Self::UserFault(_) => pagemap.watched(range),
            Self::SoftDirty(bits, _) => bits.watched(&range),
        }
    }
}
