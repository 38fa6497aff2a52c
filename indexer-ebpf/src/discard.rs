//! System calls that change memory without a write: they punch holes, zero, or drop pages, and no page table shows it. And those that make pages
//! writable without a fault that is an exception (`mlock`, `MADV_POPULATE_WRITE`): a page may be written from then on, and no hook tells. (`mlockall` and `mlock2` do so too; VMMs
//! call them when they start, if at all.)
//!
//! At the call's entry it is counted as in flight and then its pages are marked; at its exit it is counted as done. Between the two the
//! daemon must not take a page for known. What a call cannot be pinned to becomes "any page may have been discarded".
//!
//! Not seen here: the same operations through `io_uring`, by another process through its own descriptor of the RAM file, and in 32-bit
//! VMMs. The comparison with the file's holes is the second witness for these, as long as nobody has filled the hole again; else the audit of contents is.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use aya_log_ebpf::debug;
use indexer_common::marks::{FILE_SHIFT, PAGE_SHIFT};

use crate::{
    count,
    files::{Which, which},
    offsets::offset,
    range,
    vm::Vm,
};

/// What a call is going to do.
pub enum Effect {
    /// Nothing to the VM's memory.
    Nothing,
    /// Discard addresses, in pages.
    Addresses(u64, u64),
    /// Discard parts of a RAM file, in keys of the file table.
    Files(u64, u64),
    /// Something that cannot be told.
    Anything,
}

/// fallocate: mode bits that leave content alone.
const FALLOC_FL_KEEP_SIZE: u64 = 1;
/// fallocate: moves everything behind the range.
const FALLOC_FL_COLLAPSE_RANGE: u64 = 0x08;
/// fallocate: moves everything behind the range.
const FALLOC_FL_INSERT_RANGE: u64 = 0x20;
/// Bytes beyond the first of a page.
pub const IN_PAGE: u64 = (1 << PAGE_SHIFT) - 1;

/// Begins a call: counts it, then marks.
#[inline(always)]
pub fn begin(vm: &Vm, effect: Effect) {
    match effect {
        Effect::Nothing => count::entered(vm, false),
        Effect::Anything => {
            count::entered(vm, true);
            vm.discards_overflow();
        }
        Effect::Addresses(start, end) => {
            count::entered(vm, true);
            range::discard(vm, vm.header.hva, start, end);
        }
        Effect::Files(start, end) => {
            count::entered(vm, true);
            range::discard(vm, vm.header.files, start, end);
        }
    }
}

/// `fallocate(fd, mode, offset, len)`: what a balloon, virtio-mem and `MADV_REMOVE`'s friends do to shared RAM.
#[tracepoint]
pub fn enter_fallocate(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let arguments = unsafe {
        (
            ctx.read_at::<u64>(offset!(arguments.fallocate_fd)),
            ctx.read_at::<u64>(offset!(arguments.fallocate_mode)),
            ctx.read_at::<u64>(offset!(arguments.fallocate_offset)),
            ctx.read_at::<u64>(offset!(arguments.fallocate_len)),
        )
    };
    let (Ok(fd), Ok(mode), Ok(offset), Ok(len)) = arguments else {
        begin(&vm, Effect::Anything);
        return None;
    };
    let mode = mode & 0xffff_ffff;
    let effect = if mode & !FALLOC_FL_KEEP_SIZE == 0 || (offset as i64) < 0 || (len as i64) <= 0 {
        Effect::Nothing // allocates, or fails
    } else {
        match which(&vm, fd) {
            Which::Other => Effect::Nothing,
            Which::Unknown => Effect::Anything,
            Which::Ram(file) => {
                let base = u64::from(file) << FILE_SHIFT;
                let end = if mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE) != 0 {
                    u64::from(file + 1) << FILE_SHIFT
                } else {
                    // Both are below 2^63.
                    base + ((offset + len + IN_PAGE) >> PAGE_SHIFT)
                };
                Effect::Files(base + (offset >> PAGE_SHIFT), end)
            }
        }
    };
    debug!(&ctx, "fallocate: fd {} mode {:x} offset {:x} length {:x}", fd, mode, offset, len);
    begin(&vm, effect);
    None
}

/// `ftruncate(fd, length)`: cuts RAM off, or nothing; rare enough not to be looked at closely.
#[tracepoint]
pub fn enter_ftruncate(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offset is that of this kernel's tracepoint.
    let fd = unsafe { ctx.read_at::<u64>(offset!(arguments.ftruncate_fd)) };
    let effect = match fd.map(|fd| which(&vm, fd)) {
        Ok(Which::Other) => Effect::Nothing,
        _ => Effect::Anything,
    };
    begin(&vm, effect);
    None
}

/// `madvise(start, len, behavior)`.
#[tracepoint]
pub fn enter_madvise(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let arguments = unsafe {
        (
            ctx.read_at::<u64>(offset!(arguments.madvise_start)),
            ctx.read_at::<u64>(offset!(arguments.madvise_len)),
            ctx.read_at::<u64>(offset!(arguments.madvise_behavior)),
        )
    };
    let (Ok(start), Ok(len), Ok(behavior)) = arguments else {
        begin(&vm, Effect::Anything);
        return None;
    };
    let end = start.wrapping_add(len).wrapping_add(IN_PAGE);
    let effect = if keeps_content(behavior) || end < start {
        Effect::Nothing
    } else {
        Effect::Addresses(start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    };
    debug!(&ctx, "madvise: address {:x} length {:x} advice {}", start, len, behavior);
    begin(&vm, effect);
    None
}

/// `process_madvise(pidfd, vec, vlen, behavior, flags)`: the ranges are in user memory, so which they are is not looked at.
#[tracepoint]
pub fn enter_process_madvise(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offset is that of this kernel's tracepoint.
    let behavior = unsafe { ctx.read_at::<u64>(offset!(arguments.process_madvise_behavior)) };
    let effect = match behavior {
        Ok(behavior) if keeps_content(behavior) => Effect::Nothing,
        _ => Effect::Anything,
    };
    begin(&vm, effect);
    None
}

/// `mlock(start, len)`: private memory is made writable at once.
#[tracepoint]
pub fn enter_mlock(ctx: TracePointContext) -> Option<()> {
    let vm = Vm::current()?;
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let arguments = unsafe {
        (ctx.read_at::<u64>(offset!(arguments.mlock_start)), ctx.read_at::<u64>(offset!(arguments.mlock_len)))
    };
    let effect = match arguments {
        (Ok(start), Ok(len)) => {
            let end = start.wrapping_add(len).wrapping_add(IN_PAGE);
            // One that wraps around is refused by the kernel.
            if end < start {
                Effect::Nothing
            } else {
                Effect::Addresses(start >> PAGE_SHIFT, end >> PAGE_SHIFT)
            }
        }
        _ => Effect::Anything,
    };
    begin(&vm, effect);
    None
}

/// The end of any of these calls.
#[tracepoint]
pub fn exit_discard(_: TracePointContext) -> Option<()> {
    count::exited(&Vm::current()?);
    None
}

/// Advice known to leave what a page holds alone, and whether it can be written unseen (asm-generic/mman-common.h). All else, also what later kernels may
/// add, counts as a discard.
#[inline(always)]
fn keeps_content(behavior: u64) -> bool {
    matches!(
        behavior & 0xffff_ffff,
        0..=3       // NORMAL, RANDOM, SEQUENTIAL, WILLNEED
        | 10..=22   // DONTFORK, DOFORK, (UN)MERGEABLE, (NO)HUGEPAGE, DONTDUMP, DODUMP, WIPEONFORK, KEEPONFORK, COLD, PAGEOUT, POPULATE_READ
        | 25 // COLLAPSE
    )
}
