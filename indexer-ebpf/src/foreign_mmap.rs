//! Another process is about to map a VM's RAM file writable: its writes will be in no page table of the VMM.
//!
//! Called for every `mmap` on the host; a mapping that is not shared, not writable or of no file leaves after some comparisons. Not seen
//! here: a mapping that is made writable later (`mprotect`) or inherited (`fork`), and 32-bit processes. Discovery's look through all
//! mappings is the second witness for these.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map, macros::tracepoint, programs::TracePointContext};
use aya_log_ebpf::debug;
use indexer_common::marks::{File, MAX_RAM_FILES};

use crate::{
    files::identity,
    offsets::offset,
    vm::{Vm, process},
};

/// RAM files of tracked VMs, and the process of each. Filled by the daemon.
#[btf_map]
static RAM_FILES: HashMap<File, u32, MAX_RAM_FILES> = HashMap::new();

const PROT_WRITE: u64 = 2;
/// `MAP_TYPE`, and of its values `MAP_SHARED` and `MAP_SHARED_VALIDATE`.
const MAP_TYPE: u64 = 0xf;
const MAP_SHARED: u64 = 1;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_ANONYMOUS: u64 = 0x20;

/// `mmap(addr, len, prot, flags, fd, offset)`.
#[tracepoint]
pub fn foreign_mmap(ctx: TracePointContext) -> Option<()> {
    // SAFETY: reads through a helper that checks; the offsets are those of this kernel's tracepoint.
    let (prot, flags, fd) = unsafe {
        let flags: u64 = ctx.read_at(offset!(mmap.flags)).ok()?;
        let kind = flags & MAP_TYPE;
        if flags & MAP_ANONYMOUS != 0 || (kind != MAP_SHARED && kind != MAP_SHARED_VALIDATE) {
            return None;
        }
        let prot: u64 = ctx.read_at(offset!(mmap.prot)).ok()?;
        (prot, flags, ctx.read_at::<u64>(offset!(mmap.fd)).ok()?)
    };
    if prot & PROT_WRITE == 0 {
        return None;
    }
    let process = process();
    // The daemon itself maps RAM files writable only where a migration fills them, before a guest runs there.
    if process == offset!(mmap.daemon) as u32 {
        return None;
    }
    // SAFETY: reads through helpers that check.
    let (inode, device, _) = unsafe { identity(fd) }.ok()?;
    // SAFETY: an entry is a number, which the daemon replaces as a whole.
    let vmm = *unsafe { RAM_FILES.get(&File { inode, device, unused: 0 }) }?;
    if vmm != process {
        Vm::of(vmm)?.foreign_mapping();
        debug!(&ctx, "mmap: process {} maps RAM of {} with flags {:x}", process, vmm, flags);
    }
    None
}
