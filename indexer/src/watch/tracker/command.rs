//! What trackers are asked to do.

use std::{sync::Arc, time::Instant};

use memdex_wire::job::{SyncReport, VerifyReport};
use tokio::sync::oneshot;

use crate::{host::JobError, vm::descriptor::VmDescriptor};

/// What a tracker is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Make every page current once. `still`: the guest has been stopped and its I/O has drained, so no write is on its way.
    Sync { deadline: Instant, still: bool, reply: oneshot::Sender<Result<SyncReport, JobError>> },
    /// Read every current page again.
    Verify { reply: oneshot::Sender<Result<VerifyReport, JobError>> },
    /// Leave the memory alone: a migration fills it. Answered when nothing of it is being read.
    StandAside { reply: oneshot::Sender<Result<(), JobError>> },
    /// Begin a new bucket of unsettled pages. The answer is a time after which none of the older ones were published.
    CloseUnsettled { reply: oneshot::Sender<Result<Instant, JobError>> },
    /// At some moment after `mark` no direct I/O was under way: what was published before need not wait any longer to settle. Answered when all of it has been read
    /// once more.
    Drained { mark: Instant, reply: oneshot::Sender<Result<(), JobError>> },
    /// Discovery found the VM changed.
    Changed(Arc<VmDescriptor>),
    /// Look up: tracking may have been stopped.
    Wake,
}
