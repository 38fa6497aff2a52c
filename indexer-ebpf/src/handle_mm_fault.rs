//! The one gate to a writable page-table entry: the kernel's own fault handler, whoever asked for the page.
//!
//! Used where soft-dirty bits are the witness (kernels before 6.7), which lose what is written between reading and clearing them. Here
//! also comes by what is no exception of the processor's (direct I/O that pins pages, KVM's own look-ups, another process that writes
//! through `process_vm_writev` or `/proc/PID/mem`) and what is done for a VMM by a thread that is not its own (vhost before 6.4).

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use aya_log_ebpf::debug;

use crate::{files::read, offsets::offset, vm::Vm};

/// `FAULT_FLAG_WRITE` (include/linux/mm_types.h).
const FAULT_FLAG_WRITE: u64 = 1;

/// `handle_mm_fault(vma, address, flags, regs)`: marks the page of a write fault, by its host virtual address.
#[kprobe]
pub fn handle_mm_fault(ctx: ProbeContext) -> u32 {
    let _ = mark(&ctx);
    0
}

#[inline(always)]
fn mark(ctx: &ProbeContext) -> Option<()> {
    if ctx.arg::<u64>(2)? & FAULT_FLAG_WRITE == 0 {
        return None;
    }
    let address = ctx.arg::<u64>(1)?;
    let vm = vm_of(ctx.arg::<u64>(0)?)?;
    let page = vm.wrote_hva(address)?; // else it is other memory of the VMM
    debug!(ctx, "handle_mm_fault: hva {:x} is page {}", address, page);
    None
}

/// The tracked process whose memory it is: the owner of the address space, not the one that runs. An address space without an owner is that of a process
/// that ends; then whoever runs is asked, and a mark too many does no harm.
#[inline(always)]
fn vm_of(vma: u64) -> Option<Vm> {
    // SAFETY: every read goes through the helper, which checks addresses and fails instead of faulting.
    let owner: Result<u32, i32> = unsafe {
        read::<u64>(vma, offset!(mapping.vma_mm))
            .and_then(|mm| read::<u64>(mm, offset!(mapping.mm_owner)))
            .and_then(|owner| read::<u32>(owner, offset!(mapping.task_tgid)))
    };
    owner.ok().and_then(Vm::of).or_else(Vm::current)
}
