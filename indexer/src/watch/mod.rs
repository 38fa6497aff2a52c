//! Who was written: the witnesses, and the discipline that makes their word good.
//!
//! Owns arming and the order of things; never hashes and never decides what a page's content is called.
//!
//! # On arming pages, and the order in which things are done
//!
//! A fingerprint is `current` only if the page was write-protected *before* its bytes were read and no write has been
//! seen since. So for each batch of stale pages the [tracker] does, in this order and never in another:
//!
//! 1. **arm**: write-protect the pages in the VMM's address space. When the call returns, the protection is in the page
//!    table and every translation cache: a write from now on takes a fault, and the fault clears the protection.
//! 2. **read** the bytes and **hash** them.
//! 3. **check**: look at the page table (read-only) and at the eBPF marks. A page that is no longer protected, or has
//!    been marked, may have been read half written: it is *not* published and stays stale.
//! 4. **publish**.
//!
//! A write that lands after the check finds the page protected, takes a fault, leaves a mark and clears the protection;
//! the next look finds it. Turned round (read first, protect afterwards) a write between the two would be lost for good:
//! the page would be protected, look clean, and have the wrong fingerprint.
//!
//! Batches overlap: one is read by the pool while this thread arms the next and publishes the one before. Nobody takes marks meanwhile, and
//! a batch whose region was mapped anew since (its *epoch* moved) is thrown away: a scan of the new mapping says nothing of the old one.
//!
//! # A mark comes before the write
//!
//! eBPF runs when the fault is *taken*. A scan that runs between mark and write sees the page still protected. So a mark
//! is spent only when a scan has seen the page written; until then the page counts as stale and is looked at again
//! (`awaited` in [queue]). Discards (a balloon punching holes) have no written bit at all: the page is stale from the
//! system call's entry, and may be read only after its exit.
//!
//! A mark that could not be pinned to a page comes before its write as well: everything is scanned, and once more when the write has landed.
//!
//! What follows from each answer of kernel and marks is in [protocol], apart from the asking; `model` explores it in every order of events.
//!
//! # Truth and immediacy
//!
//! The page table is the truth: guest writes, device emulation in the VMM, vhost in the kernel all go through it. The
//! marks make it cheap: a scan walks only what was marked. A slow [audit](tracker) reads the whole table (without
//! changing anything) and the RAM file's holes, and demands that every page shown as `current` or `zero` be *positively*
//! protected; what it finds otherwise is stale at once and counted. `sync` runs the same audit first, so its answer
//! does not rest on marks at all.
//!
//! # What this cannot see
//!
//! Writes that do not go through the VMM's page table: devices behind VFIO, another process with its own mapping of the RAM
//! file. Discovery looks for each of these; where one is possible the VM is `advisory` and says why. Direct I/O that pinned its pages before they were
//! armed is not seen either, but it comes to an end: until then what was read is *unsettled* ([unsettled]). The fault that pins an armed page
//! raises no exception, so eBPF does not mark it: where direct I/O is possible the page tables are scanned all the time.

pub mod claim;
pub mod cost;
pub mod ebpf;
mod entries;
mod held;
pub mod inject;
#[cfg(test)]
mod model;
pub mod pagemap;
pub mod process;
mod protection;
mod protocol;
mod ptrace;
pub mod queue;
mod softdirty;
pub mod tracker;
pub(crate) mod unsettled;
pub mod userfault;
pub mod witnesses;
