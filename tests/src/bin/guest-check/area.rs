//! The memory that is written and checked. Owns the mapping; knows nothing of what should be in it.
#![expect(
    unsafe_code,
    reason = "mmap and madvise, by their C names: this program is built without any crate"
)]

use std::ffi::c_void;

use crate::content::{Page, WORDS};

const PAGE: usize = size_of::<Page>();

unsafe extern "C" {
    fn mmap(
        address: *mut c_void,
        len: usize,
        protection: i32,
        flags: i32,
        file: i32,
        offset: i64,
    ) -> *mut c_void;
    fn madvise(address: *mut c_void, len: usize, advice: i32) -> i32;
}

const PROT_READ_WRITE: i32 = 3;
const MAP_PRIVATE_ANONYMOUS: i32 = 0x22;
const MADV_DONTNEED: i32 = 4;

/// Anonymous memory, for as long as the program runs.
#[derive(Debug)]
pub(crate) struct Area {
    pages: &'static mut [Page],
}

impl Area {
    /// This many pages, all zero; none if the kernel refuses.
    pub(crate) fn new(pages: usize) -> Option<Self> {
        let len = pages.checked_mul(PAGE)?;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let address =
            unsafe { mmap(std::ptr::null_mut(), len, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0) };
        if address as isize == -1 {
            return None;
        }
        // SAFETY: mapped above, `len` long, zeroed and aligned to a page; nobody else has it, and it is never unmapped.
        let pages = unsafe { std::slice::from_raw_parts_mut(address.cast::<[u64; WORDS]>(), pages) };
        Some(Self { pages })
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn page(&self, index: usize) -> &Page {
        // The compiler is not to know that it is we who wrote it.
        std::hint::black_box(&self.pages[index])
    }

    pub(crate) fn page_mut(&mut self, index: usize) -> &mut Page {
        std::hint::black_box(&mut self.pages[index])
    }

    /// Gives a page back to the kernel: it reads as zero from now on.
    pub(crate) fn give_back(&mut self, index: usize) -> bool {
        let page: *mut Page = self.page_mut(index);
        // SAFETY: one page of our mapping, to which no reference is left; zero is as good a value as any for it.
        unsafe { madvise(page.cast(), PAGE, MADV_DONTNEED) == 0 }
    }
}
