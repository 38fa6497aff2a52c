//! What any program has to do that reads a RAM file: map a piece of it, hash, unmap. The floor under a first index.
#![expect(unsafe_code, reason = "mmap and its bytes")]

use std::{
    fs::{self, File},
    time::Instant,
};

use indexer::fingerprint::{Hasher, Page};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = size_of::<Page>();
/// Pages mapped at a time: 8 MiB, as the daemon does.
const PIECE: usize = 2048;

/// The RAM file of a VMM of this bench.
pub(crate) fn ram_file(pid: u32) -> File {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the VMM runs");
    let ram = entries.flatten().find(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("bench-ram"))
    });
    File::open(ram.expect("the VMM holds its RAM file").path()).expect("its RAM file can be opened")
}

/// Seconds that `threads` threads need to map and hash `pages` pages of a RAM file.
pub(crate) fn seconds(file: &File, pages: usize, threads: usize) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let share = pages.div_ceil(threads);
        for first in (0..pages).step_by(share) {
            scope.spawn(move || hash_part(file, first, (first + share).min(pages)));
        }
    });
    begun.elapsed().as_secs_f64()
}

fn hash_part(file: &File, first: usize, end: usize) {
    let (mut hasher, mut out) = (Hasher::new(), Vec::new());
    for start in (first..end).step_by(PIECE) {
        let len = (end - start).min(PIECE) * PAGE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let address = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, (start * PAGE) as u64)
        }
        .expect("a piece of the RAM file can be mapped");
        // SAFETY: mapped above, `len` long, and the file is as long as the VMM made it. Nobody writes it during the measurement.
        let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), len) };
        out.clear();
        hasher.fingerprint(bytes.as_chunks().0, &mut out);
        std::hint::black_box(&out);
        // SAFETY: mapped above; `bytes` is not used any more.
        unsafe { munmap(address, len) }.expect("what was mapped can be unmapped");
    }
}
