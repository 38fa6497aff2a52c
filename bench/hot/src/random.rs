//! Random numbers that are the same in each run.
//!
//! Hash tables and the reverse index begin with a random number, and where its entries lie depends on that: two runs of the same program would not execute the
//! same instructions. So this program brings its own `getrandom`, which std and the crate of that name call in place of the C library's. Never part of a daemon.
#![expect(unsafe_code, reason = "it is called as a C function, and fills memory that it is given")]

use std::{
    ffi::{c_uint, c_void},
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

static STATE: AtomicU64 = AtomicU64::new(0);

/// As getrandom(2), but not random.
///
/// # Safety
/// As for the C library's: `length` bytes at `buffer` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller says so.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        let mut x = STATE.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed);
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        chunk.copy_from_slice(&(x ^ x >> 31).to_le_bytes()[..chunk.len()]);
    }
    length as isize
}

/// Whether std and the crate get their numbers here.
///
/// # Panics
/// If they do not.
pub(crate) fn check() {
    RandomState::new().hash_one(0);
    let asked_by_std = STATE.load(Relaxed);
    assert_ne!(
        asked_by_std, 0,
        "std's random numbers come from elsewhere: counts would differ from run to run"
    );
    drop(indexer::map::ContentIndex::new());
    assert_ne!(
        STATE.load(Relaxed),
        asked_by_std,
        "the index's random numbers come from elsewhere: counts would differ from run to run"
    );
}
