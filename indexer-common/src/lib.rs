//! Types that cross between the eBPF programs and the daemon.
//!
//! Owns the layout of every byte both sides touch: the map that holds a VM's marks ([`marks`]), the offsets the daemon
//! finds out and the programs use ([`offsets`]), the counters of discarding system calls ([`calls`]) and of what soft-dirty tracking has
//! to know of the whole host ([`gate`]), and the records of the memslot iterator ([`records`]). Never holds logic.
//!
//! Everything is `#[repr(C)]` with its padding spelled out, because the two sides are built by different compilers for
//! different targets and share nothing but memory.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod calls;
pub mod gate;
pub mod marks;
pub mod offsets;
pub mod records;
