//! The tables that let a program turn an address into a page: made here from what discovery knows, as plain data.
//!
//! Owns the arithmetic. Never talks to the kernel.

use indexer_common::marks::{
    ADDRESS_SPACES, CHUNK_SHIFT, DOUBT_FILES, DOUBT_GPA, DOUBT_HVA, ELEMENT_SHIFT, EXTENTS_SHIFT, Extent,
    FILE_SHIFT, FIRST_TABLE_ELEMENT, File, Header, MAX_EXTENTS, MAX_FILES, PAGE_SHIFT, SLOT_SHIFT, Table,
};

use super::memslots::KvmVm;
use crate::{units::Hva, vm::descriptor::Memslot};

/// What the programs have to know of a VM to mark its pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkLayout {
    /// Guest RAM in the VMM's address space.
    pub regions: Vec<MarkRegion>,
    /// KVM's memory slots; empty for a VM without KVM.
    pub memslots: Vec<Memslot>,
    /// Pages of the VM.
    pub pages: u32,
}

/// A region of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkRegion {
    /// First address.
    pub start: Hva,
    /// Length in bytes.
    pub len: u64,
    /// Page number of its first page.
    pub first_page: u32,
    /// The file it maps shared, if it does.
    pub file: Option<RamFile>,
}

/// Part of a file that is guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamFile {
    /// Device of the file, as in `st_dev`.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Offset in the file of the region's first byte.
    pub offset: u64,
}

/// Where the parts of a VM's map go, and the tables in it.
#[derive(Debug)]
pub(super) struct Plan {
    /// Element 0.
    pub(super) header: Header,
    /// The tables, with the element each begins at.
    pub(super) tables: Vec<(u32, Vec<Extent>)>,
    /// Elements of the whole map.
    pub(super) elements: u32,
    /// All RAM files; the header has the first of them.
    pub(super) files: Vec<File>,
}

impl Plan {
    /// Lays the map of a VM out. `kvm` is what the kernel said of the process's KVM VMs just now.
    pub(super) fn new(layout: &MarkLayout, kvm: &[KvmVm]) -> Self {
        let mut doubts = 0;
        let mut elements = FIRST_TABLE_ELEMENT;
        let mut tables = Vec::new();
        let mut table = |extents: Vec<Extent>, doubt: u32, doubts: &mut u32| -> Table {
            let Some(extents) = normalized(extents) else {
                *doubts |= doubt;
                return Table::default();
            };
            let place = Table { element: elements, count: extents.len() as u32 };
            elements += place.count.div_ceil(1 << EXTENTS_SHIFT);
            if place.count > 0 {
                tables.push((place.element, extents));
            }
            place
        };

        let hva = layout.regions.iter().map(|region| Extent {
            start: region.start.0 >> PAGE_SHIFT,
            pages: pages(region.len),
            first_page: region.first_page,
        });
        let hva = table(hva.collect(), DOUBT_HVA, &mut doubts);

        // One KVM VM, all of its slots, and not being changed: anything else leaves guest physical addresses ambiguous.
        let known = match kvm {
            [vm] if vm.complete => Some(vm),
            _ => None,
        };
        let slots = known.map_or(&[][..], |vm| &vm.slots);
        let mut gpa = [Table::default(); ADDRESS_SPACES];
        for (space, place) in gpa.iter_mut().enumerate() {
            let extents = slots
                .iter()
                .filter(|slot| (slot.id >> 16) as usize == space)
                .flat_map(|slot| parts(slot, &layout.regions).map(|part| part.at(slot.gpa.0 >> PAGE_SHIFT)));
            *place = table(extents.collect(), DOUBT_GPA, &mut doubts);
        }
        let by_slot = slots.iter().flat_map(|slot| {
            parts(slot, &layout.regions).map(|part| part.at(u64::from(slot.id) << SLOT_SHIFT))
        });
        let by_slot = table(by_slot.collect(), DOUBT_GPA, &mut doubts);
        if known.is_none() {
            doubts |= DOUBT_GPA;
        }

        let (files, by_file) = files(&layout.regions);
        if files.len() > MAX_FILES {
            doubts |= DOUBT_FILES;
        }
        let mut file = [File::default(); MAX_FILES];
        for (place, known) in file.iter_mut().zip(&files) {
            *place = *known;
        }
        let by_file = table(by_file, DOUBT_FILES, &mut doubts);

        let mut reserve = |bytes: u32| {
            let place = elements;
            elements += bytes.div_ceil(1 << ELEMENT_SHIFT);
            place
        };
        let chunks = layout.pages.div_ceil(1 << CHUNK_SHIFT);
        let header = Header {
            kvm: known.map_or(0, |vm| vm.address),
            generations: known.map_or([0; ADDRESS_SPACES], |vm| vm.generations),
            hva,
            gpa,
            slots: by_slot,
            files: by_file,
            pages: layout.pages,
            doubts,
            written_summary: reserve(chunks),
            written_marks: reserve(layout.pages),
            discarded_summary: reserve(chunks),
            discarded_chunks: reserve(chunks),
            discarded_marks: reserve(layout.pages),
            file_count: files.len().min(MAX_FILES) as u32,
            file,
        };
        Self { header, tables, elements, files }
    }
}

/// The part of a slot that lies in a region.
struct Part {
    /// Pages from the slot's start.
    offset: u64,
    pages: u32,
    first_page: u32,
}

impl Part {
    fn at(&self, base: u64) -> Extent {
        Extent { start: base + self.offset, pages: self.pages, first_page: self.first_page }
    }
}

/// A slot may span regions, and hold memory that is none (video memory, firmware).
fn parts<'a>(slot: &Memslot, regions: &'a [MarkRegion]) -> impl Iterator<Item = Part> + use<'a> {
    let (from, to) = (slot.hva.0, slot.hva.0.saturating_add(slot.len));
    regions.iter().filter_map(move |region| {
        let start = from.max(region.start.0);
        let end = to.min(region.start.0.saturating_add(region.len));
        (start < end).then(|| Part {
            offset: (start - from) >> PAGE_SHIFT,
            pages: pages(end - start),
            first_page: region.first_page + pages(start - region.start.0),
        })
    })
}

/// The RAM files, and the extents by file and offset.
fn files(regions: &[MarkRegion]) -> (Vec<File>, Vec<Extent>) {
    let mut files: Vec<File> = Vec::new();
    let mut extents = Vec::new();
    for region in regions {
        let Some(RamFile { device, inode, offset }) = region.file else { continue };
        let file = File { inode, device: kernel_device(device), unused: 0 };
        let index = files.iter().position(|known| *known == file).unwrap_or_else(|| {
            files.push(file);
            files.len() - 1
        });
        extents.push(Extent {
            start: ((index as u64) << FILE_SHIFT) + (offset >> PAGE_SHIFT),
            pages: pages(region.len),
            first_page: region.first_page,
        });
    }
    (files, extents)
}

/// Sorted and joined; `None` if two overlap (a key would mean two pages) or if there are too many for a program to search.
fn normalized(mut extents: Vec<Extent>) -> Option<Vec<Extent>> {
    extents.retain(|extent| extent.pages > 0);
    extents.sort_unstable_by_key(|extent| extent.start);
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        if let Some(last) = joined.last_mut() {
            let end = last.start + u64::from(last.pages);
            if extent.start < end {
                return None;
            }
            if extent.start == end
                && extent.first_page == last.first_page + last.pages
                && let Some(pages) = last.pages.checked_add(extent.pages)
            {
                last.pages = pages;
                continue;
            }
        }
        joined.push(extent);
    }
    (joined.len() <= MAX_EXTENTS as usize).then_some(joined)
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX)
}

/// `st_dev` in the encoding of the kernel's `dev_t` (include/linux/kdev_t.h).
fn kernel_device(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Gpa;

    fn region(start: u64, pages: u64, first_page: u32) -> MarkRegion {
        MarkRegion { start: Hva(start), len: pages << PAGE_SHIFT, first_page, file: None }
    }

    fn slot(id: u32, gpa: u64, hva: u64, pages: u64) -> Memslot {
        Memslot { id, gpa: Gpa(gpa), len: pages << PAGE_SHIFT, hva: Hva(hva), flags: 0 }
    }

    fn vm(slots: Vec<Memslot>) -> KvmVm {
        KvmVm { pid: 1, fd: 3, slots, address: 0xffff_0000, generations: [4, 0], complete: true }
    }

    fn extents(plan: &Plan, table: Table) -> Vec<Extent> {
        let found = plan.tables.iter().find(|(element, _)| table.count > 0 && *element == table.element);
        found.map_or(Vec::new(), |(_, extents)| extents.clone())
    }

    #[test]
    fn slots_map_to_the_pages_behind_them() {
        // Two regions; slot 0 covers the end of the first, a hole and the start of the second; slot 1 covers no RAM.
        let layout = MarkLayout {
            regions: vec![region(0x10_0000, 16, 0), region(0x20_0000, 16, 16)],
            pages: 32,
            ..MarkLayout::default()
        };
        let kvm = [vm(vec![slot(0, 0x8000_0000, 0x10_8000, 0x100), slot(1, 0, 0x90_0000, 4)])];
        let plan = Plan::new(&layout, &kvm);
        assert_eq!(plan.header.doubts, 0);
        assert_eq!(
            extents(&plan, plan.header.gpa[0]),
            [
                Extent { start: 0x8_0000, pages: 8, first_page: 8 },
                Extent { start: 0x8_0000 + 0xf8, pages: 8, first_page: 16 },
            ]
        );
        assert_eq!(
            extents(&plan, plan.header.slots),
            [Extent { start: 0, pages: 8, first_page: 8 }, Extent { start: 0xf8, pages: 8, first_page: 16 }]
        );
        assert_eq!(plan.header.kvm, 0xffff_0000);
    }

    #[test]
    fn what_is_ambiguous_is_in_doubt() {
        let layout =
            MarkLayout { regions: vec![region(0x10_0000, 16, 0)], pages: 16, ..MarkLayout::default() };
        assert_eq!(Plan::new(&layout, &[]).header.doubts, DOUBT_GPA, "no KVM VM known");
        let one = vm(vec![slot(0, 0, 0x10_0000, 16)]);
        assert_eq!(Plan::new(&layout, std::slice::from_ref(&one)).header.doubts, 0);
        assert_eq!(Plan::new(&layout, &[one.clone(), one.clone()]).header.doubts, DOUBT_GPA, "two KVM VMs");
        let incomplete = KvmVm { complete: false, ..one };
        assert_eq!(Plan::new(&layout, &[incomplete]).header.doubts, DOUBT_GPA, "slots changing");
        let overlapping = MarkLayout { regions: vec![region(0, 4, 0), region(0x1000, 4, 4)], ..layout };
        assert_eq!(Plan::new(&overlapping, &[]).header.doubts, DOUBT_GPA | DOUBT_HVA);
    }

    #[test]
    fn a_file_mapped_twice_is_in_doubt_and_two_parts_are_not() {
        let file = |offset| Some(RamFile { device: 1, inode: 7, offset });
        let regions = |second| {
            vec![
                MarkRegion { file: file(0), ..region(0x10_0000, 16, 0) },
                MarkRegion { file: file(second), ..region(0x20_0000, 16, 16) },
            ]
        };
        let layout = |second| MarkLayout { regions: regions(second), pages: 32, ..MarkLayout::default() };
        assert_eq!(Plan::new(&layout(0x8000), &[]).header.doubts & DOUBT_FILES, DOUBT_FILES);
        let plan = Plan::new(&layout(0x10000), &[]);
        assert_eq!(plan.header.doubts & DOUBT_FILES, 0);
        assert_eq!(plan.header.file_count, 1);
        assert_eq!(extents(&plan, plan.header.files), [Extent { start: 0, pages: 32, first_page: 0 }]);
    }

    #[test]
    fn devices_are_in_the_kernels_encoding() {
        assert_eq!(kernel_device(rustix::fs::makedev(259, 70000)), 259 << 20 | 70000);
    }

    proptest! {
        #[test]
        fn every_address_of_a_slot_finds_its_page(
            lens in prop::collection::vec((1_u64..40, 0_u64..3), 1..8),
            slots in prop::collection::vec((0_u64..200, 1_u64..60), 0..6),
        ) {
            let (mut address, mut page, mut regions) = (0x100_u64, 0, Vec::new());
            for (len, gap) in lens {
                regions.push(region(address << PAGE_SHIFT, len, page));
                address += len + gap;
                page += len as u32;
            }
            let slots: Vec<_> = slots
                .into_iter()
                .enumerate()
                .map(|(id, (at, len))| slot(id as u32, (id as u64) << 32, (0x100 + at) << PAGE_SHIFT, len))
                .collect();
            let layout = MarkLayout { regions, memslots: Vec::new(), pages: page };
            let plan = Plan::new(&layout, &[vm(slots.clone())]);
            prop_assert_eq!(plan.header.doubts, 0);
            let find = |table: Table, key: u64| extents(&plan, table).into_iter().find_map(|extent| {
                let inside = key.checked_sub(extent.start)?;
                (inside < u64::from(extent.pages)).then(|| extent.first_page + inside as u32)
            });
            for slot in &slots {
                for offset in 0..slot.len >> PAGE_SHIFT {
                    let hva = (slot.hva.0 >> PAGE_SHIFT) + offset;
                    let expected = find(plan.header.hva, hva);
                    prop_assert_eq!(find(plan.header.gpa[0], (slot.gpa.0 >> PAGE_SHIFT) + offset), expected);
                    prop_assert_eq!(find(plan.header.slots, (u64::from(slot.id) << SLOT_SHIFT) + offset), expected);
                }
            }
        }

        #[test]
        fn the_parts_of_the_map_do_not_overlap(pages in 1_u32..5_000_000) {
            let layout = MarkLayout { regions: vec![region(0, u64::from(pages), 0)], memslots: Vec::new(), pages };
            let plan = Plan::new(&layout, &[]);
            let header = plan.header;
            let chunks = pages.div_ceil(1 << CHUNK_SHIFT);
            let parts = [
                (header.hva.element, 1),
                (header.written_summary, chunks.div_ceil(1 << ELEMENT_SHIFT)),
                (header.written_marks, pages.div_ceil(1 << ELEMENT_SHIFT)),
                (header.discarded_summary, chunks.div_ceil(1 << ELEMENT_SHIFT)),
                (header.discarded_chunks, chunks.div_ceil(1 << ELEMENT_SHIFT)),
                (header.discarded_marks, pages.div_ceil(1 << ELEMENT_SHIFT)),
            ];
            let mut next = FIRST_TABLE_ELEMENT;
            for (element, len) in parts {
                prop_assert_eq!(element, next);
                next += len;
            }
            prop_assert_eq!(plan.elements, next);
        }
    }
}
