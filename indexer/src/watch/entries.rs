//! Where a process's pages are, on kernels without `PAGEMAP_SCAN`: the eight bytes that /proc/PID/pagemap has for each.
//!
//! Owns reading them (Documentation/admin-guide/mm/pagemap.rst). They say nothing of writes; for that there is
//! [`super::pagemap`]. A read walks every page of the range, populated or not: 2 MiB for each GiB of memory.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use memdex_wire::PAGE_SIZE;

use crate::units::Hva;

/// The page is in memory.
pub(super) const PRESENT: u64 = 1 << 63;
/// The page is in swap, or its entry holds a marker.
pub(super) const SWAPPED: u64 = 1 << 62;

const ENTRY: usize = size_of::<u64>();
/// Entries read at a time.
const BATCH: u64 = 1024;

/// Hands out the runs of pages of `range` that have one of the bits `any_of`. An address space that is gone has none.
pub(super) fn runs(
    pagemap: &File,
    range: Range<Hva>,
    any_of: u64,
    mut each: impl FnMut(Range<Hva>),
) -> io::Result<()> {
    let size = PAGE_SIZE as u64;
    let (mut page, end) = (range.start.0 / size, range.end.0 / size);
    let mut buffer = [0; BATCH as usize * ENTRY];
    let mut open: Option<u64> = None;
    let mut close = |open: &mut Option<u64>, end: u64| {
        if let Some(start) = open.take() {
            each(Hva(start * size)..Hva(end * size));
        }
    };
    while page < end {
        let wanted = (end - page).min(BATCH) as usize * ENTRY;
        let read = pagemap.read_at(&mut buffer[..wanted], page * ENTRY as u64)?;
        let (entries, _) = buffer[..read].as_chunks::<ENTRY>();
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if u64::from_le_bytes(*entry) & any_of == 0 {
                close(&mut open, page);
            } else {
                open.get_or_insert(page);
            }
            page += 1;
        }
    }
    close(&mut open, page);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{pagemap::Pagemap, process::identify};

    #[test]
    fn entries_and_scan_agree_on_every_page() {
        // Zeroed by the kernel and touched here and there; longer than a batch.
        let pages = 3 * BATCH as usize + 7;
        let mut memory = vec![0_u8; pages * PAGE_SIZE];
        for page in (0..pages).filter(|page| page % 7 < 2 || page % 500 < 100) {
            memory[page * PAGE_SIZE] = 1;
        }
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE_SIZE as u64);
        let range = Hva(start)..Hva(start + ((pages - 1) * PAGE_SIZE) as u64);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut entries = Vec::new();
        runs(&pagemap, range.clone(), PRESENT | SWAPPED, |run| entries.push(run)).unwrap();
        assert!(!entries.is_empty() && entries.iter().all(|run| run.start < run.end));

        let mut scanned = Vec::new();
        let by_scan = Pagemap::open(identify(std::process::id()).unwrap()).unwrap();
        by_scan.present(range, &mut scanned).unwrap();
        assert_eq!(entries, scanned);
    }

    #[test]
    fn beyond_the_address_space_there_is_nothing() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let range = Hva(0x7fff_ffff_0000)..Hva(0x8000_0000_f000);
        runs(&pagemap, range, PRESENT | SWAPPED, |run| panic!("{run:?}")).unwrap();
    }
}
