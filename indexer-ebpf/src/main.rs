//! The eBPF programs of memdexd.
//!
//! They mark pages as written or discarded, and list KVM's memslots. They never decide what is true about a page: a mark only says that
//! somebody should look. A program that is called for a process nobody tracks leaves after one map lookup.
//!
//! Which kernel functions are used: nothing newer than Linux 6.1 (`bpf_loop` came with 5.17, maps of arrays of different size with 5.10).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![warn(missing_docs)]

mod count;
mod discard;
mod files;
mod foreign_mmap;
mod gate;
mod handle_mm_fault;
mod kvm_dirty_ring_push;
mod kvm_dirty_ring_reset;
mod kvm_page_fault;
mod kvm_try_async_get_page;
mod memslots;
mod offsets;
mod opaque;
mod page_fault_kernel;
mod page_fault_user;
mod range;
mod remap;
mod vm;

/// The kernel lets only programs with a GPL-compatible licence use the helpers for tracing.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program loops for ever, so it would refuse an object in which this can be reached.
    loop {}
}
