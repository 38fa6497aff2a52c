//! The kernel touched a VMM's memory on its behalf: system calls that write to it, vhost, KVM's instruction emulator.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use aya_log_ebpf::debug;

use crate::{kvm_page_fault::WRITE, offsets::offset, vm::Vm};

/// Marks the page of a write fault, by its host virtual address.
#[tracepoint]
pub fn page_fault_kernel(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let (code, address) = unsafe {
        let code: u64 = vm.known(ctx.read_at(offset!(page_fault_kernel.error_code)))?;
        let address: u64 = vm.known(ctx.read_at(offset!(page_fault_kernel.address)))?;
        (code, address)
    };
    if code & WRITE == 0 {
        return None;
    }
    let page = vm.wrote_hva(address)?; // else it is other memory of the VMM
    debug!(&ctx, "page_fault_kernel: hva {:x} is page {}", address, page);
    None
}
