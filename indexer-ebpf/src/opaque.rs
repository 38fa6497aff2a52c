//! A zero the verifier does not know.
//!
//! Before Linux 6.7 the verifier follows the body of a `bpf_loop` only once, as its first round. What the loop's state holds in that round it
//! takes for what it always holds, and it removes the branches that cannot be taken then. A loop that begins with `page: 0` would
//! never do what is for pages above 0. (Kernel commit "bpf: verify callbacks as if they are called unknown number of times".) So
//! the state of every loop begins with this zero, which could be anything.

use aya_ebpf::Global;

/// In a section the daemon could write to at any time (it never does), so that the verifier takes its value for unknown.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data")]
static ZERO: Global<u64> = Global::new(0);

/// Zero.
#[inline(always)]
pub fn zero() -> u64 {
    ZERO.load()
}
