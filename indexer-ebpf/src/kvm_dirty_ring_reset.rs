//! A VMM has emptied KVM's dirty ring, and KVM protects the pages that were in it again.
//!
//! The protection is in the tables when this is called, but translations of it may still be cached: they are flushed before the ioctl
//! returns. The event names no pages.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};

use crate::vm::Vm;

/// Says that what was pushed before is armed by KVM once more.
#[tracepoint]
pub fn kvm_dirty_ring_reset(_: TracePointContext) -> Option<()> {
    Vm::current()?.ring_reset();
    None
}
