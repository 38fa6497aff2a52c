//! A guest touched memory that is swapped out, and KVM has a thread of its own fetch it while the guest goes on with something else.
//!
//! That thread asks for the page to write to it, whatever the guest did (`async_pf_execute` in virt/kvm/async_pf.c), and raises no exception: the page is writable
//! afterwards, and what the guest writes to it later takes no fault.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use aya_log_ebpf::debug;

use crate::{
    offsets::offset,
    vm::{NO_PAGE, Vm},
};

/// Marks the page that is fetched.
#[tracepoint]
pub fn kvm_try_async_get_page(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offset is that of this kernel's tracepoint.
    let gfn: u64 = vm.known(unsafe { ctx.read_at(offset!(async_page.gfn)) })?;
    match vm.wrote_gfn(gfn) {
        NO_PAGE => debug!(&ctx, "kvm_try_async_get_page: gfn {:x} is no page of the VM", gfn),
        page => debug!(&ctx, "kvm_try_async_get_page: gfn {:x} is page {}", gfn, page),
    }
    None
}
