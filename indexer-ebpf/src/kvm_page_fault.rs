//! A guest touched memory that KVM has to map first (two-dimensional paging: EPT, NPT).

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use aya_log_ebpf::debug;

use crate::{
    offsets::offset,
    vm::{NO_PAGE, Vm},
};

/// Page-fault error codes: the access was a write (`X86_PF_WRITE`, and `PFERR_WRITE_MASK` in KVM).
pub const WRITE: u64 = 2;

/// Marks the page of a guest's write fault, by its guest physical address.
#[tracepoint]
pub fn kvm_page_fault(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let (code, address) = unsafe {
        let code: u64 = vm.known(ctx.read_at(offset!(kvm_page_fault.error_code)))?;
        let address: u64 = vm.known(ctx.read_at(offset!(kvm_page_fault.address)))?;
        (code, address)
    };
    if code & WRITE == 0 {
        return None;
    }
    match vm.wrote_gpa(address) {
        NO_PAGE => debug!(&ctx, "kvm_page_fault: gpa {:x} is no page of the VM", address),
        page => debug!(&ctx, "kvm_page_fault: gpa {:x} is page {}", address, page),
    }
    None
}
