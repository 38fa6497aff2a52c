//! Which memory backend of QEMU's stands behind which region, and whether what discovery has found is all there is.
//!
//! Owns the questions and the sentences, for both ends: what is moved by page numbers has to mean the same memory on both sides.

use memdex_wire::PAGE_SIZE;

use super::monitor::{MemoryBackend, Monitor, Version};
use crate::vm::descriptor::{Backing, Region};

const HOW: &str = "start the VM with -object memory-backend-file,id=ram,size=…,mem-path=/dev/shm/NAME,share=on -machine memory-backend=ram";

/// Looks at a VM's memory as QEMU knows it.
pub(super) struct Backends {
    all: Vec<MemoryBackend>,
    bytes: u64,
}

impl Backends {
    pub(super) async fn look(monitor: &mut Monitor) -> Result<Self, String> {
        let all = monitor.memory_backends().await.map_err(|error| error.to_string())?;
        let bytes = monitor.memory_bytes().await.map_err(|error| error.to_string())?;
        Ok(Self { all, bytes })
    }

    /// Whether QEMU of this version leaves all of the memory to us, and we know all of it.
    pub(super) fn check(&self, version: Version, regions: &[Region]) -> Result<(), String> {
        if regions.is_empty() {
            return Err("no guest memory was found in this process".to_owned());
        }
        for region in regions {
            if !matches!(region.backing, Backing::SharedFile { .. }) {
                return Err(format!(
                    "region {} is private memory, which only QEMU itself can move: {HOW}",
                    region.name
                ));
            }
            if region.mapping_page_size > PAGE_SIZE as u64 {
                return Err(format!(
                    "region {} is made of huge pages (hugetlbfs), which cannot be filled page by page yet: {HOW}",
                    region.name
                ));
            }
        }
        if let Some(private) = self.all.iter().find(|backend| !backend.share) {
            return Err(format!("the memory backend {:?} is not shared: {HOW}", private.id));
        }
        if version >= Version::NAMED_FILES
            && let Some(nameless) = self.all.iter().find(|backend| backend.kind != "memory-backend-file")
        {
            return Err(format!(
                "QEMU {version} moves the memory backend {:?} by itself, as its memory has no file with a name (since 8.1 only such is left out): {HOW}",
                nameless.id
            ));
        }
        let found: u64 = regions.iter().map(|region| region.len).sum();
        if self.bytes != found {
            return Err(format!(
                "QEMU has {} MiB of guest memory, of which {} MiB were found: all of it has to be in shared files",
                self.bytes >> 20,
                found >> 20
            ));
        }
        Ok(())
    }

    /// The ids behind the regions, in order; empty if there is only one.
    pub(super) fn ids(&self, regions: &[Region]) -> Result<Vec<String>, String> {
        if regions.len() < 2 {
            return Ok(Vec::new());
        }
        let id = |region: &Region| {
            let Backing::SharedFile { path, .. } = &region.backing else { return None };
            let mut named = self.all.iter().filter(|backend| backend.file.as_ref() == Some(path));
            let only = named.next().filter(|_| named.next().is_none())?;
            Some(only.id.clone())
        };
        regions
            .iter()
            .map(|region| {
                id(region).ok_or_else(|| {
                    format!(
                        "the VM has {} pieces of memory, and it cannot be told which backend {} belongs to: give each a file of its own",
                        regions.len(),
                        region.name
                    )
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Hva;

    fn region(path: &str, pages: u64, page_size: u64) -> Region {
        Region {
            name: path.to_owned(),
            start: Hva(0x1000),
            len: pages * 4096,
            backing: Backing::SharedFile {
                device: 1,
                inode: 2,
                offset: 0,
                path: path.into(),
                trackable: true,
            },
            mapping_page_size: page_size,
        }
    }

    fn backend(id: &str, kind: &str, file: &str) -> MemoryBackend {
        MemoryBackend { id: id.to_owned(), kind: kind.to_owned(), file: Some(file.into()), share: true }
    }

    #[test]
    fn memory_that_cannot_be_moved_is_named() {
        let good = Backends { all: vec![backend("a", "memory-backend-file", "/a")], bytes: 8192 };
        let (old, new) = (Version(7, 2, 0), Version(8, 1, 0));
        assert_eq!(good.check(new, &[region("/a", 2, 4096)]), Ok(()));
        let words =
            |backends: &Backends, version, regions: &[Region]| backends.check(version, regions).unwrap_err();
        assert!(words(&good, new, &[region("/a", 3, 4096)]).contains("were found"));
        assert!(words(&good, new, &[region("/a", 2, 2 << 20)]).contains("hugetlbfs"));
        assert!(words(&good, new, &[]).contains("no guest memory"));
        let memfd = Backends { all: vec![backend("a", "memory-backend-memfd", "")], bytes: 8192 };
        assert_eq!(memfd.check(old, &[region("/memfd:x", 2, 4096)]), Ok(()));
        assert!(words(&memfd, new, &[region("/memfd:x", 2, 4096)]).contains("8.1"));
    }

    #[test]
    fn regions_are_told_apart_by_their_backends() {
        let (a, b) = (backend("a", "f", "/a"), backend("b", "f", "/b"));
        let all = Backends { all: vec![b, a.clone()], bytes: 0 };
        assert_eq!(all.ids(&[region("/a", 1, 4096)]).unwrap(), [""; 0]);
        let two = [region("/b", 1, 4096), region("/a", 1, 4096)];
        assert_eq!(all.ids(&two).unwrap(), ["b", "a"]);
        let twice = Backends { all: vec![a.clone(), a], bytes: 0 };
        assert!(twice.ids(&two).is_err());
    }
}
