//! System calls that put other memory in the place of what was there.
//!
//! Afterwards it is other memory, which nobody watches; but only who looks at its page table hears of that. So the whole table has to be scanned: any page may have been written.
//!
//! Where soft-dirty bits are the witness that is not enough, since a mapping that is made between reading the bits and clearing them looks as if it had always been there. There such
//! a call is a discard: its pages are stale at its entry, and not to be read before its exit.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use indexer_common::marks::PAGE_SHIFT;

use crate::{
    count,
    discard::{self, Effect, IN_PAGE},
    offsets::offset,
    range,
    vm::Vm,
};

/// `MAP_FIXED`; `MAP_FIXED_NOREPLACE` replaces nothing.
const MAP_FIXED: u64 = 0x10;

#[inline(always)]
fn addresses(start: u64, len: u64) -> Effect {
    let end = start.wrapping_add(len).wrapping_add(IN_PAGE);
    if end < start { Effect::Anything } else { Effect::Addresses(start >> PAGE_SHIFT, end >> PAGE_SHIFT) }
}

#[inline(always)]
fn begin(vm: &Vm, effect: Effect) {
    if offset!(remaps.counted) != 0 {
        return discard::begin(vm, effect);
    }
    let ours = match effect {
        Effect::Nothing => false,
        Effect::Addresses(start, end) => range::overlaps(vm, vm.header.hva, start, end),
        Effect::Files(..) | Effect::Anything => true,
    };
    if ours {
        vm.overflow();
    }
}

/// `mmap(addr, len, prot, flags, fd, off)`: without `MAP_FIXED` the kernel chooses a place where nothing is.
#[tracepoint]
pub fn enter_mmap(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let arguments = unsafe {
        (
            ctx.read_at::<u64>(offset!(remaps.mmap_addr)),
            ctx.read_at::<u64>(offset!(remaps.mmap_len)),
            ctx.read_at::<u64>(offset!(remaps.mmap_flags)),
        )
    };
    let effect = match arguments {
        (Ok(_), Ok(_), Ok(flags)) if flags & MAP_FIXED == 0 => Effect::Nothing,
        (Ok(start), Ok(len), Ok(_)) => addresses(start, len),
        _ => Effect::Anything,
    };
    begin(&vm, effect);
    None
}

/// `munmap(addr, len)`.
#[tracepoint]
pub fn enter_munmap(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let arguments = unsafe {
        (ctx.read_at::<u64>(offset!(remaps.munmap_addr)), ctx.read_at::<u64>(offset!(remaps.munmap_len)))
    };
    let effect = match arguments {
        (Ok(start), Ok(len)) => addresses(start, len),
        _ => Effect::Anything,
    };
    begin(&vm, effect);
    None
}

/// `mremap(addr, old_len, new_len, flags, new_addr)` moves memory away, and with `MREMAP_FIXED` onto other memory, which is rare enough in a
/// VMM not to be looked at closely.
#[tracepoint]
pub fn enter_mremap(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let arguments = unsafe {
        (
            ctx.read_at::<u64>(offset!(remaps.mremap_addr)),
            ctx.read_at::<u64>(offset!(remaps.mremap_old_len)),
            ctx.read_at::<u64>(offset!(remaps.mremap_flags)),
        )
    };
    let effect = match arguments {
        (Ok(start), Ok(len), Ok(flags)) if flags & MREMAP_FIXED == 0 => addresses(start, len),
        _ => Effect::Anything,
    };
    begin(&vm, effect);
    None
}

/// `MREMAP_FIXED`
const MREMAP_FIXED: u64 = 2;

/// The end of any of these calls.
#[tracepoint]
pub fn exit_remap(_: TracePointContext) -> Option<()> {
    count::exited(&Vm::current()?);
    None
}
