//! KVM reports a dirty page to a VMM that has its dirty ring on.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use aya_log_ebpf::debug;

use crate::{offsets::offset, vm::Vm};

/// Marks a page by slot and offset.
#[tracepoint]
pub fn kvm_dirty_ring_push(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let (slot, offset) = unsafe {
        let slot: u32 = vm.known(ctx.read_at(offset!(dirty_ring.slot)))?;
        let offset: u64 = vm.known(ctx.read_at(offset!(dirty_ring.offset)))?;
        (slot, offset)
    };
    match vm.wrote_slot(slot, offset) {
        Some(page) => debug!(&ctx, "kvm_dirty_ring_push: slot {:x} offset {} is page {}", slot, offset, page),
        None => debug!(&ctx, "kvm_dirty_ring_push: slot {:x} offset {} is no page of the VM", slot, offset),
    }
    None
}
