//! What is true, found out without memdex: the RAM files read page by page and hashed with plain BLAKE3.

use std::{collections::HashSet, fs::File, io, os::unix::fs::FileExt, path::Path};

use memdex_tests::{PAGE, contract::DiffCounts};
use rustix::{fs::SeekFrom, io::Errno};

use crate::page_map::Fingerprint;

/// The content of each page of a RAM file; `None` is zero. Holes are not touched.
pub(crate) fn contents(ram: &Path) -> io::Result<Vec<Option<Fingerprint>>> {
    let file = File::open(ram)?;
    let mut contents = vec![None; (file.metadata()?.len() / PAGE) as usize];
    let mut page = [0; PAGE as usize];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(contents),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(at))?;
        while at < end {
            file.read_exact_at(&mut page, at)?;
            if page.iter().any(|byte| *byte != 0) {
                contents[(at / PAGE) as usize] = Some(*blake3::hash(&page).as_bytes());
            }
            at += PAGE;
        }
    }
}

/// What a host that holds `theirs` lacks of a VM, counted by hand.
pub(crate) fn diff(vm: &[Option<Fingerprint>], theirs: &HashSet<Fingerprint>) -> DiffCounts {
    let total = vm.len() as u64;
    let zero = vm.iter().filter(|content| content.is_none()).count() as u64;
    let matched = vm.iter().flatten().filter(|content| theirs.contains(*content)).count() as u64;
    DiffCounts { total, zero, matched, missing: total - zero - matched, stale: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_counts_once() {
        let vm = [None, Some([1; 32]), Some([2; 32]), Some([2; 32]), None];
        let counts = diff(&vm, &HashSet::from([[2; 32], [3; 32]]));
        assert_eq!(counts, DiffCounts { total: 5, zero: 2, matched: 2, missing: 1, stale: 0 });
    }

    #[test]
    fn holes_and_zeros_have_no_content() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("ram");
        let file = File::create(&path).unwrap();
        file.set_len(4 * PAGE).unwrap();
        file.write_all_at(&[7; PAGE as usize], PAGE).unwrap();
        file.write_all_at(&[0; PAGE as usize], 3 * PAGE).unwrap();
        let seven = *blake3::hash(&[7; PAGE as usize]).as_bytes();
        assert_eq!(contents(&path).unwrap(), [None, Some(seven), None, None]);
    }
}
