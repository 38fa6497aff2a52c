//! Runs of keys: marking all of their pages as discarded, however many there are, and asking whether there are any.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use indexer_common::marks::{CHUNK, CHUNK_SHIFT, Header, MAX_EXTENTS, Table};

use crate::{
    opaque,
    vm::{Marks, Vm},
};

/// Most steps one call may take: a step passes an extent (a VM has a handful), marks a page at the ends of a run, or marks a whole chunk in
/// between, so this is enough for 32 GiB at once. A longer run is said to discard everything.
const STEPS: u32 = MAX_EXTENTS + 2 * CHUNK + 16384;

/// Where the walk is. On the program's stack; the steps get a pointer to it.
struct Walk {
    marks: &'static Marks,
    header: &'static Header,
    table: Table,
    /// Next extent to look at.
    index: u32,
    /// Set by the step that finds nothing left to do.
    done: u32,
    /// Keys to mark.
    start: u64,
    end: u64,
    /// Pages left of the extent before `index`.
    page: u32,
    pages_end: u32,
}

/// Marks every page whose key in `table` lies in `start..end` as discarded.
#[inline(always)]
pub fn discard(vm: &Vm, table: Table, start: u64, end: u64) {
    if start >= end {
        return;
    }
    // From the first extent on: a search here as well would be more than the verifier is willing to follow.
    let mut walk = Walk {
        marks: vm.marks,
        header: vm.header,
        table,
        index: opaque::zero() as u32,
        done: opaque::zero() as u32,
        start,
        end,
        page: opaque::zero() as u32,
        pages_end: opaque::zero() as u32,
    };
    // SAFETY: the kernel calls `step` with a pointer to `walk`, which outlives the call.
    unsafe { bpf_loop(STEPS, step as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.done == 0 {
        vm.discards_overflow();
    }
}

/// One step; 1 ends the loop.
extern "C" fn step(_: u64, walk: *mut Walk) -> u64 {
    // SAFETY: `discard` passed a pointer to a `Walk` that nobody else uses meanwhile.
    let walk = unsafe { &mut *walk };
    let vm = Vm { marks: walk.marks, header: walk.header };
    if walk.page < walk.pages_end {
        if walk.page & (CHUNK - 1) == 0 && walk.pages_end - walk.page >= CHUNK {
            vm.discarded_chunk(walk.page >> CHUNK_SHIFT);
            walk.page += CHUNK;
        } else {
            vm.discarded(walk.page);
            walk.page += 1;
        }
        return 0;
    }
    if walk.index >= walk.table.count {
        walk.done = 1;
        return 1;
    }
    let Some(extent) = vm.extent(walk.table, walk.index) else { return 1 };
    if extent.start >= walk.end {
        walk.done = 1;
        return 1;
    }
    walk.index += 1;
    let extent_end = extent.start + u64::from(extent.pages);
    let start = if walk.start > extent.start { walk.start } else { extent.start };
    let end = if walk.end < extent_end { walk.end } else { extent_end };
    if start < end {
        walk.page = extent.first_page + (start - extent.start) as u32;
        walk.pages_end = extent.first_page + (end - extent.start) as u32;
    }
    0
}

/// A search through a table for an extent that has one of the keys.
struct Search {
    marks: &'static Marks,
    header: &'static Header,
    table: Table,
    index: u32,
    found: u32,
    start: u64,
    end: u64,
}

/// Whether any page's key in `table` lies in `start..end`.
#[inline(always)]
pub fn overlaps(vm: &Vm, table: Table, start: u64, end: u64) -> bool {
    if start >= end {
        return false;
    }
    let mut search = Search {
        marks: vm.marks,
        header: vm.header,
        table,
        index: opaque::zero() as u32,
        found: opaque::zero() as u32,
        start,
        end,
    };
    // SAFETY: the kernel calls `look` with a pointer to `search`, which outlives the call.
    unsafe { bpf_loop(MAX_EXTENTS, look as *mut c_void, (&raw mut search).cast(), 0) };
    search.found != 0
}

/// One extent; 1 ends the loop.
extern "C" fn look(_: u64, search: *mut Search) -> u64 {
    // SAFETY: `overlaps` passed a pointer to a `Search` that nobody else uses meanwhile.
    let search = unsafe { &mut *search };
    if search.index >= search.table.count {
        return 1;
    }
    let vm = Vm { marks: search.marks, header: search.header };
    let Some(extent) = vm.extent(search.table, search.index) else { return 1 };
    if extent.start >= search.end {
        return 1;
    }
    search.index += 1;
    if extent.start + u64::from(extent.pages) > search.start {
        search.found = 1;
        return 1;
    }
    0
}
