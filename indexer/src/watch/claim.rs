//! One daemon per VM.
//!
//! Two daemons that arm the same VM would hide writes from each other: what one arms again, the other never sees
//! written. Owns the lock that keeps the second one out; never touches the VM.

use std::{fs::File, io, os::fd::OwnedFd};

use rustix::{fs::FlockOperation, io::Errno};

use super::{
    process::{Process, is_gone},
    userfault::AttachError,
};
use crate::vm::descriptor::ProcessId;

/// The right to arm one VM, held until dropped or until the daemon ends in whatever way.
///
/// The lock is a `flock` on `/proc/PID/mem`, which only those can open who may trace the VMM: with a file that anybody can open, anybody could keep
/// the daemon from a VM. Nothing is left behind and no place in the file system is
/// needed. It keeps out daemons that see the same procfs mount (or another mount of the same pid namespace); it does not keep out one
/// in a different pid namespace, which could not name this process by the same number anyway.
#[derive(Debug)]
pub struct Claim {
    _memory: OwnedFd,
}

impl Claim {
    /// Claims a VM.
    ///
    /// # Errors
    /// [`AttachError::Claimed`] if another daemon has it, [`AttachError::Gone`] if the process has ended.
    pub fn take(process: ProcessId) -> Result<Self, AttachError> {
        let wrap = |error: io::Error| {
            if is_gone(&error) { AttachError::Gone } else { AttachError::Io { step: "claim", error } }
        };
        let process = Process::open(process).map_err(wrap)?;
        let memory = process.with_path("mem", File::open).map_err(wrap)?;
        match rustix::fs::flock(&memory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _memory: memory.into() }),
            Err(Errno::WOULDBLOCK) => Err(AttachError::Claimed),
            Err(error) => Err(wrap(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::process::identify;

    #[test]
    fn the_second_claim_is_refused_until_the_first_is_dropped() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let id = identify(child.id()).unwrap();
        let first = Claim::take(id).unwrap();
        assert!(matches!(Claim::take(id), Err(AttachError::Claimed)));
        drop(first);
        Claim::take(id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(Claim::take(id), Err(AttachError::Gone)));
    }
}
