//! A tracked process: finding it, finding pages in its tables, setting its marks.
//!
//! Looks and stores; which events matter is for the programs to say.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, HashOfMaps},
    helpers::{bpf_get_current_pid_tgid, bpf_loop, bpf_probe_read_kernel},
    macros::btf_map,
};
use indexer_common::marks::{
    ADDRESS_SPACES, CHUNK_SHIFT, DOUBT_GPA, DOUBT_HVA, ELEMENT, ELEMENT_SHIFT, EXTENTS_PER_ELEMENT,
    EXTENTS_SHIFT, Extent, FLAGS_ELEMENT, Flags, HEADER_ELEMENT, Header, MAP_FLAGS, MAX_EXTENTS_SHIFT,
    MAX_VMS, PAGE_SHIFT, SLOT_SHIFT, Table,
};

use crate::{offsets::offset, opaque};

/// The marks of one VM; see `indexer_common::marks`.
pub type Marks = Array<[u8; ELEMENT], 1, MAP_FLAGS>;

/// Tracked processes by thread group id.
///
/// The daemon replaces an entry when a VM's layout changes. The kernel waits, before it answers such an update, until no program can
/// still be using the old entry, so the daemon may read the old marks one last time and miss nothing.
#[btf_map]
static VMS: HashOfMaps<u32, Marks, MAX_VMS> = HashOfMaps::new();

/// What [`Vm::wrote_gpa`] says of an address that is no page.
///
/// Not an `Option`: where it is `None` its number is undefined, and a compiler that runs out of registers keeps it on the stack all the
/// same. Before Linux 6.3 the verifier rejects a program that reads there.
pub const NO_PAGE: u32 = u32::MAX;

/// The tracked process that is running.
#[derive(Clone, Copy)]
pub struct Vm {
    /// Its map.
    pub marks: &'static Marks,
    /// Element 0 of the map.
    pub header: &'static Header,
}

/// Thread group id of the running task.
#[inline(always)]
pub fn process() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

impl Vm {
    /// The running process, if it is tracked.
    ///
    /// Work done for a VMM by kernel threads of its own (vhost since Linux 6.4, `io_uring`) runs with its thread group id and is found
    /// too. Before 6.4 vhost's threads had ids of their own; there the daemon's sweeps find what they wrote.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        Self::of(process())
    }

    /// The process with this id, if it is tracked.
    #[inline(always)]
    pub fn of(process: u32) -> Option<Self> {
        // SAFETY: entries are maps, which the kernel keeps alive while a program runs. A reused entry would at worst be another VM's
        // map, whose marks then say too much, never too little: our own entry is replaced in one step.
        let marks = unsafe { VMS.get(&process) }?;
        let header = marks.get_ptr(HEADER_ELEMENT)?.cast();
        // SAFETY: element 0 holds a header (asserted to fit), which never changes while programs can see it.
        Some(Self { marks, header: unsafe { &*header } })
    }

    /// Marks the page at a host virtual address as written, if it is one of the VM's.
    #[inline(always)]
    pub fn wrote_hva(&self, address: u64) -> Option<u32> {
        if self.header.doubts & DOUBT_HVA != 0 {
            self.overflow();
        }
        let page = self.page(self.header.hva, address >> PAGE_SHIFT)?;
        self.wrote(page);
        Some(page)
    }

    /// Marks the page at a guest physical address as written.
    ///
    /// The event does not say in which address space it happened, so the page is looked up in both. An address in no memslot is a device
    /// and no page, provided that the memslots are those the table was made from, which is checked each time.
    ///
    /// Without two-dimensional paging the address is a guest virtual one, and no table leads from it to a page. (The same holds for a
    /// guest inside the guest, whose faults the event does not tell apart; what such a one writes is found by the sweeps.)
    #[inline(always)]
    pub fn wrote_gpa(&self, address: u64) -> u32 {
        if offset!(kvm.two_dimensional) == 0 {
            self.overflow();
            return NO_PAGE;
        }
        self.wrote_gfn(address >> PAGE_SHIFT)
    }

    /// The same of a guest frame, which is a physical one whatever the paging.
    #[inline(always)]
    pub fn wrote_gfn(&self, gfn: u64) -> u32 {
        self.check_memslots();
        let mut found = NO_PAGE;
        if let Some(page) = self.page(self.header.gpa[1], gfn) {
            self.wrote(page);
            found = page;
        }
        if let Some(page) = self.page(self.header.gpa[0], gfn) {
            self.wrote(page);
            found = page;
        }
        found
    }

    /// Marks a page of a memslot as written.
    #[inline(always)]
    pub fn wrote_slot(&self, slot: u32, offset: u64) -> Option<u32> {
        self.check_memslots();
        let page = self.page(self.header.slots, u64::from(slot) << SLOT_SHIFT | offset)?;
        self.wrote(page);
        Some(page)
    }

    /// Marks a page as written: the mark first, the summary second (the daemon reads them the other way round).
    #[inline(always)]
    pub fn wrote(&self, page: u32) {
        self.store(self.header.written_marks, page);
        self.store(self.header.written_summary, page >> CHUNK_SHIFT);
    }

    /// Marks a page as discarded.
    #[inline(always)]
    pub fn discarded(&self, page: u32) {
        self.store(self.header.discarded_marks, page);
        self.store(self.header.discarded_summary, page >> CHUNK_SHIFT);
    }

    /// Marks all pages of a chunk as discarded.
    #[inline(always)]
    pub fn discarded_chunk(&self, chunk: u32) {
        self.store(self.header.discarded_chunks, chunk);
        self.store(self.header.discarded_summary, chunk);
    }

    /// Says that any page may have been written.
    #[inline(always)]
    pub fn overflow(&self) {
        if let Some(flags) = self.flags() {
            // SAFETY: points into element 1 of a map.
            unsafe { core::ptr::write_volatile(&raw mut (*flags).overflowed, 1) };
        }
    }

    /// A value read from an event; one that cannot be read leaves the event unknown, so any page may have been written.
    #[inline(always)]
    pub fn known<T>(&self, value: Result<T, i32>) -> Option<T> {
        if value.is_err() {
            self.overflow();
        }
        value.ok()
    }

    /// Says that any page may have been discarded.
    #[inline(always)]
    pub fn discards_overflow(&self) {
        if let Some(flags) = self.flags() {
            // SAFETY: points into element 1 of a map.
            unsafe { core::ptr::write_volatile(&raw mut (*flags).discards_overflowed, 1) };
        }
    }

    /// Says that another process is mapping the VM's RAM writable.
    #[inline(always)]
    pub fn foreign_mapping(&self) {
        if let Some(flags) = self.flags() {
            // SAFETY: points into element 1 of a map.
            unsafe { core::ptr::write_volatile(&raw mut (*flags).foreign_mapping, 1) };
        }
    }

    /// Says that the VMM has emptied the dirty ring.
    #[inline(always)]
    pub fn ring_reset(&self) {
        if let Some(flags) = self.flags() {
            // SAFETY: points into element 1 of a map.
            unsafe { core::ptr::write_volatile(&raw mut (*flags).ring_reset, 1) };
        }
    }

    /// Raises the overflow if KVM's memslots are not those of the header any more, or never were known well enough.
    #[inline(always)]
    fn check_memslots(&self) {
        if self.header.doubts & DOUBT_GPA != 0 {
            self.overflow();
            return;
        }
        let spaces = offset!(kvm.address_spaces);
        let mut space = 0;
        while space < ADDRESS_SPACES {
            if space < spaces {
                let pointer = self.header.kvm + (offset!(kvm.memslots) + space * 8) as u64;
                // SAFETY: the helper checks the addresses it is given and fails instead of faulting.
                let generation = unsafe {
                    bpf_probe_read_kernel(pointer as *const u64).and_then(|slots| {
                        bpf_probe_read_kernel((slots + offset!(kvm.generation) as u64) as *const u64)
                    })
                };
                if generation != Ok(self.header.generations[space]) {
                    self.overflow();
                    if let Some(flags) = self.flags() {
                        // SAFETY: points into element 1 of a map.
                        unsafe { core::ptr::write_volatile(&raw mut (*flags).layout_stale, 1) };
                    }
                    return;
                }
            }
            space += 1;
        }
    }

    /// The page a key stands for.
    #[inline(always)]
    fn page(&self, table: Table, key: u64) -> Option<u32> {
        let index = self.search(table, key)?;
        let extent = self.extent(table, index)?;
        let inside = key - extent.start;
        (inside < u64::from(extent.pages)).then_some(extent.first_page + inside as u32)
    }

    /// Index of the last extent that starts at or before `key`.
    #[inline(always)]
    fn search(&self, table: Table, key: u64) -> Option<u32> {
        let mut search = Search { vm: *self, table, key, low: opaque::zero() as u32, high: table.count };
        // SAFETY: the kernel calls `halve` with a pointer to `search`, which outlives the call.
        unsafe { bpf_loop(MAX_EXTENTS_SHIFT + 1, halve as *mut c_void, (&raw mut search).cast(), 0) };
        search.low.checked_sub(1)
    }

    /// An entry of a table.
    #[inline(always)]
    pub fn extent(&self, table: Table, index: u32) -> Option<Extent> {
        let Some(element) = self.marks.get_ptr(table.element + (index >> EXTENTS_SHIFT)) else {
            self.overflow();
            return None;
        };
        let element: *const Extent = element.cast();
        // SAFETY: an element of a table holds exactly EXTENTS_PER_ELEMENT extents, and tables never change.
        Some(unsafe { *element.add((index & (EXTENTS_PER_ELEMENT - 1)) as usize) })
    }

    #[inline(always)]
    fn flags(&self) -> Option<*mut Flags> {
        Some(self.marks.get_ptr_mut(FLAGS_ELEMENT)?.cast())
    }

    /// Sets byte `index` of the bitmap that begins at `element`.
    ///
    /// A plain store of one byte: it cannot undo a store to a neighbour, and the daemon's swap of the whole word is atomic. Volatile, so
    /// that the compiler neither drops nor reorders it; x86 keeps stores in program order.
    #[inline(always)]
    fn store(&self, element: u32, index: u32) {
        if let Some(bytes) = self.marks.get_ptr_mut(element + (index >> ELEMENT_SHIFT)) {
            let byte = bytes.cast::<u8>();
            // SAFETY: the offset is below ELEMENT, the size of an element.
            unsafe { core::ptr::write_volatile(byte.add(index as usize & (ELEMENT - 1)), 1) };
        } else {
            self.overflow();
        }
    }
}

/// A binary search. A loop of its own (`bpf_loop`) rather than the program's: the verifier follows its body once, not once for each way
/// through all of its rounds.
struct Search {
    vm: Vm,
    table: Table,
    key: u64,
    /// Extents before it start at or before the key.
    low: u32,
    /// Extents from it on start after the key.
    high: u32,
}

/// One round; 1 ends the search.
extern "C" fn halve(_: u64, search: *mut Search) -> u64 {
    // SAFETY: `search` passed a pointer to a `Search` that nobody else uses meanwhile.
    let search = unsafe { &mut *search };
    if search.low >= search.high {
        return 1;
    }
    let middle = (search.low + search.high) / 2;
    let Some(extent) = search.vm.extent(search.table, middle) else { return 1 };
    if extent.start <= search.key {
        search.low = middle + 1;
    } else {
        search.high = middle;
    }
    0
}
