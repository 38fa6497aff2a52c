//! One region of guest RAM as the tracker holds it.

use std::{ops::Range, sync::Arc};

use memdex_wire::vm::{CoverageStatus, RegionCoverage};
use roaring::RoaringBitmap;

use crate::{
    memory::{MemoryError, RegionMemory},
    units::{Hva, PageRange, bytes},
    vm::descriptor::{Backing, ProcessId, Region},
    watch::protection::Protection,
};

/// Pages in a huge page.
const HUGE: u32 = 512;

/// How a region is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Watch {
    /// Pages are write-protected before they are read.
    Armed,
    /// Pages are read again every now and then; why not better.
    Rehash(String),
    /// The memory cannot be read; its pages stay stale.
    Unreadable(String),
}

/// A region, where its bytes are read from, and how it is watched.
#[derive(Debug)]
pub(super) struct Watched {
    pub region: Region,
    pub first_page: u32,
    pub memory: Option<Arc<RegionMemory>>,
    pub watch: Watch,
    /// Counts how often the memory turned out to be other than it was: what was read in an earlier epoch says nothing now.
    pub epoch: u64,
    huge_pages: bool,
}

impl Watched {
    /// Opens the region's memory and registers it with what protects it, if there is anything. Never fails: what does not
    /// work is in `watch`.
    pub(super) fn open(
        process: ProcessId,
        region: Region,
        first_page: u32,
        protection: Result<&Protection, &str>,
    ) -> Self {
        let memory = match RegionMemory::open(process, &region) {
            Ok(memory) => Some(Arc::new(memory)),
            Err(error) => {
                let watch = Watch::Unreadable(error.to_string());
                return Self { region, first_page, memory: None, watch, epoch: 0, huge_pages: false };
            }
        };
        let whole = protection.is_ok_and(|protection| protection.soft_dirty().is_some());
        let huge_pages = may_have_huge_pages(&region, whole);
        let untrackable = untrackable(&region).or_else(|| (whole && huge_pages).then(|| too_coarse(&region)));
        let watch = match (untrackable, protection) {
            (Some(reason), _) => Watch::Rehash(reason),
            (None, Err(reason)) => Watch::Rehash(reason.to_owned()),
            (None, Ok(protection)) => match protection.register(region.start..region.end()) {
                // Between opening and registering the VMM may have mapped something else. What it maps from now on is not registered,
                // which every scan sees.
                Ok(()) if memory.as_ref().is_some_and(|memory| !memory.still_mapped(process, &region)) => {
                    Watch::Unreadable(MemoryError::Vanished.to_string())
                }
                Ok(()) => Watch::Armed,
                Err(error) => Watch::Rehash(error.to_string()),
            },
        };
        Self { region, first_page, memory, watch, epoch: 0, huge_pages }
    }

    pub(super) fn pages(&self) -> u32 {
        self.region.pages() as u32
    }

    /// The region's page numbers.
    pub(super) fn range(&self) -> PageRange {
        self.first_page..self.first_page + self.pages()
    }

    pub(super) fn armed(&self) -> bool {
        self.watch == Watch::Armed
    }

    pub(super) fn readable(&self) -> bool {
        self.memory.is_some() && !matches!(self.watch, Watch::Unreadable(_))
    }

    /// Where pages of this region stand in the VMM.
    pub(super) fn addresses(&self, pages: &PageRange) -> Range<Hva> {
        let at = |page: u32| self.region.start.add(bytes(u64::from(page - self.first_page)));
        at(pages.start)..at(pages.end)
    }

    /// The pages of the VM that a range of addresses covers, clipped to the region.
    pub(super) fn pages_at(&self, addresses: &Range<Hva>) -> PageRange {
        let page = |address: Hva| {
            let inside = address.0.clamp(self.region.start.0, self.region.end().0) - self.region.start.0;
            self.first_page + (inside / bytes(1)) as u32
        };
        page(addresses.start)..page(addresses.end)
    }

    /// The same pages and those a huge page brings in with them. The first write to memory that was never populated may
    /// populate a whole 2 MiB at once, of which one page is marked; writes to the others take no fault any more.
    pub(super) fn with_huge_pages(&self, pages: RoaringBitmap) -> RoaringBitmap {
        if !self.huge_pages || pages.is_empty() {
            return pages;
        }
        let mut wide = RoaringBitmap::new();
        let mut done = 0;
        for page in pages.iter() {
            if page < done {
                continue;
            }
            if let Some(huge) = self.huge_page(page) {
                done = huge.end;
                wide.insert_range(huge);
            }
        }
        wide
    }

    /// The huge page that this one may be a part of, clipped to the region; `None` where there are none.
    pub(super) fn huge_page(&self, page: u32) -> Option<PageRange> {
        self.huge_pages.then(|| {
            // Huge pages are aligned in the VMM's address space, not in page numbers.
            let skew = (self.region.start.0 / bytes(1)) as u32 % HUGE;
            let inside = page - self.first_page + skew;
            let start = inside - inside % HUGE;
            let end = (start + HUGE - skew).min(self.pages());
            self.first_page + start.saturating_sub(skew)..self.first_page + end
        })
    }

    /// Pages counted from the region's start.
    pub(super) fn relative(&self, pages: &PageRange) -> PageRange {
        pages.start - self.first_page..pages.end - self.first_page
    }

    /// Stops relying on this region's memory: it went away while it was read.
    pub(super) fn lost(&mut self, error: &MemoryError) {
        self.watch = Watch::Unreadable(error.to_string());
        self.epoch += 1;
    }

    pub(super) fn coverage(&self) -> RegionCoverage {
        let (status, reason) = match &self.watch {
            Watch::Armed => (CoverageStatus::Exact, None),
            Watch::Rehash(reason) => (CoverageStatus::Advisory, Some(reason.clone())),
            Watch::Unreadable(reason) => (CoverageStatus::Unreadable, Some(reason.clone())),
        };
        let offset = match self.region.backing {
            Backing::SharedFile { offset, .. } => offset,
            Backing::PrivateFile { .. } | Backing::Anonymous => 0,
        };
        RegionCoverage {
            region: self.region.name.clone(),
            first_page: u64::from(self.first_page),
            pages: u64::from(self.pages()),
            offset,
            status,
            reason,
            missing: Vec::new(),
        }
    }
}

/// Cuts a batch so that it does not end within a huge page whose next page `is_ready` as well: armed as a whole a huge page stays one, armed in
/// pieces it is split. Returns what is left for the next batch.
pub(super) fn cut_between_huge_pages(
    watched: &Watched,
    batch: &mut RoaringBitmap,
    is_ready: impl Fn(u32) -> bool,
) -> RoaringBitmap {
    let (Some(first), Some(last)) = (batch.min(), batch.max()) else { return RoaringBitmap::new() };
    let mut rest = RoaringBitmap::new();
    if let Some(huge) = watched.huge_page(last)
        && first < huge.start
        && last + 1 < huge.end
        && is_ready(last + 1)
    {
        rest = batch.clone();
        rest.remove_range(..huge.start);
        batch.remove_range(huge.start..);
    }
    rest
}

impl Watched {
    /// The host's settings may be other ones than when the region was opened. What has been in huge pages once may be for good.
    pub(super) fn look_for_huge_pages(&mut self) {
        if self.armed() && !self.huge_pages {
            self.huge_pages = may_have_huge_pages(&self.region, false);
        }
    }
}

/// Whether the kernel may populate a region by huge pages without being asked. Shared memory needs a setting that few
/// hosts have; a file system mounted with `huge=` counts as well. `ask`: whether it is worth asking for anonymous memory.
fn may_have_huge_pages(region: &Region, ask: bool) -> bool {
    let Backing::SharedFile { .. } = region.backing else {
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        return !(ask && setting.is_ok_and(|setting| setting.contains("[never]")));
    };
    let setting =
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let by_setting = !(setting.contains("[never]") || setting.contains("[deny]"));
    by_setting || mounts.lines().any(|mount| mount.contains("huge=") && !mount.contains("huge=never"))
}

/// Why soft-dirty bits can't tell of a region's writes.
fn too_coarse(region: &Region) -> String {
    let remedy = match region.backing {
        Backing::SharedFile { .. } => {
            "write `never` to /sys/kernel/mm/transparent_hugepage/shmem_enabled and mount without huge="
        }
        Backing::PrivateFile { .. } | Backing::Anonymous => {
            "give the VM shared memory (memory-backend-file or -memfd, share=on), or write `never` to \
             /sys/kernel/mm/transparent_hugepage/enabled and start it anew"
        }
    };
    format!(
        "it may have huge pages, of which soft-dirty bits tell only as a whole: {remedy}, or use Linux 6.7 or newer"
    )
}

/// Why a region cannot be write-protected, known without trying.
fn untrackable(region: &Region) -> Option<String> {
    match &region.backing {
        Backing::SharedFile { trackable: true, .. } | Backing::Anonymous => None,
        Backing::SharedFile { path, .. } => Some(format!(
            "the RAM file {} is not on tmpfs or hugetlbfs, so the kernel cannot watch it: put it under /dev/shm",
            path.display()
        )),
        Backing::PrivateFile { path } => Some(format!(
            "the RAM file {} is mapped private, so its pages move from file to memory unseen: use share=on",
            path.display()
        )),
    }
    .or_else(|| {
        (region.mapping_page_size > memdex_wire::PAGE_SIZE as u64).then(|| {
            format!(
                "the region is mapped in pages of {} KiB, which are not armed: one write would open {} pages of the map at once, so all of \
                 it is read again now and then",
                region.mapping_page_size / 1024,
                region.mapping_page_size / memdex_wire::PAGE_SIZE as u64
            )
        })
    })
}
