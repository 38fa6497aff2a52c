//! The allocator's manners: a daemon that lives for months beside guests that need the memory more.
#![expect(unsafe_code, reason = "glibc's knobs are C functions")]

/// Makes all threads allocate from one heap. glibc gives each thread its own and shrinks only the first, so what a thread freed
/// (tens of megabytes after reading the kernel's types) would stay resident for good. Call it before there are threads.
/// Does nothing without glibc.
pub fn one_for_all() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) only sets a number in the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives freed memory back to the system. Does nothing without glibc.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches nothing but the allocator's own free memory, under its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
