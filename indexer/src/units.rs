//! Newtypes for the numbers that must not be mixed up. No bare `u64` crosses a module border.

use std::{fmt, ops::Range};

use memdex_wire::PAGE_SIZE;

/// Host virtual address: where a byte of guest RAM stands in the VMM's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hva(pub u64);

/// Guest physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// Number of a page in a VM: counts through its regions in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(pub u32);

/// Counts the changes of a VM's map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// A run of pages, in page numbers of the VM.
pub type PageRange = Range<u32>;

impl Hva {
    /// The address `bytes` further on.
    #[must_use]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl fmt::Display for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of bytes in `pages` pages.
#[must_use]
pub const fn bytes(pages: u64) -> u64 {
    pages * PAGE_SIZE as u64
}

/// Most pages a VM may have: 8 TiB of 4 KiB pages, so that a page number fits 32 bits with room to spare.
pub const MAX_PAGES: u64 = 1 << 31;
