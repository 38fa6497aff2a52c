//! Where the running kernel keeps things: filled in by the daemon before loading, constants to the verifier.

use aya_ebpf::Global;
pub use indexer_common::offsets::Offsets;

/// Set by the daemon.
#[unsafe(no_mangle)]
static OFFSETS: Global<Offsets> = Global::new(ZERO);

// SAFETY: `Offsets` is made of integers only, for which zero is a value.
const ZERO: Offsets = unsafe { core::mem::zeroed() };

/// One member, for example `offset!(kvm.memslots)`, as a `usize`.
macro_rules! offset {
    ($($member:tt)+) => {
        $crate::offsets::load(core::mem::offset_of!($crate::offsets::Offsets, $($member)+))
    };
}
pub(crate) use offset;

/// For [`offset!`]: the member that stands `at` bytes into the struct.
#[inline(always)]
pub fn load(at: usize) -> usize {
    let all = (&raw const OFFSETS).cast::<u8>();
    // SAFETY: `Global` is a transparent wrapper, and the macro takes `at` from a member, all of which are u32. The read is volatile
    // because the daemon changes the static after compilation.
    unsafe { core::ptr::read_volatile(all.add(at).cast::<u32>()) as usize }
}
