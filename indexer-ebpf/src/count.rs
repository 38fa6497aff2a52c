//! Counting the discarding system calls of a process; see `indexer_common::calls`.

use core::arch::asm;

use aya_ebpf::{btf_maps::HashMap, helpers::bpf_get_current_pid_tgid, macros::btf_map};
use indexer_common::{
    calls::{Calls, InFlight},
    marks::MAX_VMS,
};

use crate::vm::{Vm, process};

/// Counters of each tracked process. The daemon inserts and removes entries, and never writes to one.
#[btf_map]
static CALLS: HashMap<u32, Calls, MAX_VMS> = HashMap::new();

/// The call each thread of a tracked process is in, by the thread's `pid_tgid`.
#[btf_map]
static IN_FLIGHT: HashMap<u64, InFlight, 16384> = HashMap::new();

/// Notes the beginning of a call. To be called *before* the pages it will discard are marked: the daemon that has seen a mark must see the
/// call in flight.
#[inline(always)]
pub fn entered(vm: &Vm, counted: bool) {
    let Some(calls) = CALLS.get_ptr_mut(&process()) else {
        vm.discards_overflow();
        return;
    };
    // SAFETY: an entry stays in place for as long as the process is tracked.
    let epoch = unsafe { core::ptr::read_volatile(&raw const (*calls).epoch) };
    let thread = bpf_get_current_pid_tgid();
    let call = InFlight { epoch, counted: u64::from(counted) };
    if IN_FLIGHT.insert(&thread, &call, 0).is_err() {
        // The map is full. The call's end finds no entry and raises the overflow once more, after the call has done its work.
        vm.discards_overflow();
    } else if counted {
        // SAFETY: as above.
        unsafe { increment(&raw mut (*calls).entered) };
    }
}

/// Notes the end of a call.
///
/// A call whose beginning was not seen (it began before the process was tracked) may have discarded anything.
#[inline(always)]
pub fn exited(vm: &Vm) {
    let thread = bpf_get_current_pid_tgid();
    let calls = CALLS.get_ptr_mut(&process());
    // SAFETY: the entry is this thread's own; nobody else inserts or removes it while the thread is here.
    let call = unsafe { IN_FLIGHT.get(&thread) }.copied();
    let (Some(calls), Some(call)) = (calls, call) else {
        vm.discards_overflow();
        return;
    };
    let _ = IN_FLIGHT.remove(&thread);
    // SAFETY: an entry stays in place for as long as the process is tracked.
    if unsafe { core::ptr::read_volatile(&raw const (*calls).epoch) } != call.epoch {
        vm.discards_overflow();
    } else if call.counted != 0 {
        // SAFETY: as above.
        unsafe { increment(&raw mut (*calls).exited) };
    }
}

/// Adds one, atomically among all CPUs. (`core` has no atomic read-modify-write for this target; the instruction exists.)
///
/// # Safety
/// `counter` must point into the value of a map.
#[inline(always)]
pub unsafe fn increment(counter: *mut u64) {
    // SAFETY: the caller's promise; the instruction touches nothing else.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1_u64, options(nostack));
    }
}
