//! Which page number stands for which byte of which region.

use crate::{
    units::MAX_PAGES,
    vm::descriptor::{Backing, Region},
};

/// The regions of a VM in page-number order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    regions: Vec<LayoutRegion>,
}

/// A region's place among the page numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutRegion {
    /// Name for people.
    pub name: String,
    /// Number of the region's first page.
    pub first_page: u32,
    /// Pages in the region.
    pub pages: u32,
    /// Byte offset of the first page: where the mapping begins in a RAM file, else 0.
    pub offset: u64,
}

impl LayoutRegion {
    /// The region's page numbers.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<u32> {
        self.first_page..self.first_page + self.pages
    }
}

impl Layout {
    /// Numbers the pages of `regions`. Regions that would exceed [`MAX_PAGES`] are left out.
    #[must_use]
    pub fn of(regions: &[Region]) -> Self {
        let mut first = 0u64;
        let mut layout = Self::default();
        for region in regions {
            let pages = region.pages();
            if first + pages > MAX_PAGES {
                break;
            }
            let offset = match region.backing {
                Backing::SharedFile { offset, .. } => offset,
                Backing::PrivateFile { .. } | Backing::Anonymous => 0,
            };
            layout.regions.push(LayoutRegion {
                name: region.name.clone(),
                first_page: first as u32,
                pages: pages as u32,
                offset,
            });
            first += pages;
        }
        layout
    }

    /// A single region of this many pages: for maps of no VM.
    #[must_use]
    pub fn one_region(pages: u32) -> Self {
        Self { regions: vec![LayoutRegion { name: "ram".to_owned(), first_page: 0, pages, offset: 0 }] }
    }

    /// The regions.
    #[must_use]
    pub fn regions(&self) -> &[LayoutRegion] {
        &self.regions
    }

    /// Pages in all regions.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.regions.last().map_or(0, |last| last.first_page + last.pages)
    }
}
