//! Where a process's pages are and which were written, on kernels without `PAGEMAP_SCAN`: the eight bytes that /proc/PID/pagemap has for each.
//!
//! Owns reading them (Documentation/admin-guide/mm/pagemap.rst). What they say of writes is good only together with
//! [`super::softdirty`]. A read walks every page of the range, populated or not: 2 MiB for each GiB of memory.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use memdex_wire::PAGE_SIZE;

use crate::units::Hva;

/// The page is in memory.
pub(super) const PRESENT: u64 = 1 << 63;
/// The page is in swap, or its entry holds a marker.
pub(super) const SWAPPED: u64 = 1 << 62;

/// The page was written since all bits were cleared, or its mapping has been made since.
pub(super) const SOFT_DIRTY: u64 = 1 << 55;

const ENTRY: usize = size_of::<u64>();
/// Entries read at a time.
const BATCH: u64 = 1024;

/// Hands out the runs of pages of `range` that have one of the bits `any_of`. An address space that is gone has none: false if it has
/// come to its end before the range.
pub(super) fn runs(
    pagemap: &File,
    range: Range<Hva>,
    any_of: u64,
    mut each: impl FnMut(Range<Hva>),
) -> io::Result<bool> {
    let mut open: Option<Range<Hva>> = None;
    let complete = walk(pagemap, range, |page, entry| match &mut open {
        Some(run) if entry & any_of != 0 => run.end = page.end,
        _ => {
            if let Some(run) = open.take() {
                each(run);
            }
            if entry & any_of != 0 {
                open = Some(page);
            }
        }
    })?;
    if let Some(run) = open {
        each(run);
    }
    Ok(complete)
}

/// Hands out every page of `range` with its entry. False if the address space has come to its end before.
pub(super) fn walk(
    pagemap: &File,
    range: Range<Hva>,
    mut each: impl FnMut(Range<Hva>, u64),
) -> io::Result<bool> {
    let size = PAGE_SIZE as u64;
    let (mut page, end) = (range.start.0 / size, range.end.0 / size);
    let mut buffer = [0; BATCH as usize * ENTRY];
    while page < end {
        let wanted = (end - page).min(BATCH) as usize * ENTRY;
        let read = pagemap.read_at(&mut buffer[..wanted], page * ENTRY as u64)?;
        let (entries, _) = buffer[..read].as_chunks::<ENTRY>();
        if entries.is_empty() {
            return Ok(false);
        }
        for entry in entries {
            each(Hva(page * size)..Hva((page + 1) * size), u64::from_le_bytes(*entry));
            page += 1;
        }
    }
    Ok(true)
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
        assert!(runs(&pagemap, range.clone(), PRESENT | SWAPPED, |run| entries.push(run)).unwrap());
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
        let complete = runs(&pagemap, range, PRESENT | SWAPPED, |run| panic!("{run:?}")).unwrap();
        assert!(!complete);
    }
}
