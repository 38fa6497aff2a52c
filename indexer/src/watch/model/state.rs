//! A state of the model, and what makes two of them the same.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;

use super::{
    super::{
        protocol::{Armed, Batch, Fresh, FullScan, Hashed, Sighting},
        queue::Queue,
    },
    whole::Round,
    world::World,
};
use crate::{map::PageMap, units::PageRange};

/// What one page read as.
pub(super) type Read = Option<u32>;

/// A batch under way, by what the tracker does with it next.
#[derive(Debug, Clone, Hash)]
pub(super) enum UnderWay {
    Find(Batch<Fresh>),
    Arm {
        batch: Batch<Fresh>,
        data: Vec<PageRange>,
        read: Vec<Read>,
    },
    /// Being read by the pool, page by page, whatever else the tracker does.
    Reading {
        batch: Batch<Armed>,
        data: Vec<u32>,
        read: Vec<Read>,
    },
    /// Scanned; the marks are to be looked at. `truth`: what each page held when it was scanned.
    Publish {
        batch: Batch<Hashed>,
        written: Vec<u32>,
        truth: Vec<u32>,
    },
}

/// Where the tracker is, between batches.
#[derive(Debug, Clone)]
pub(super) enum At {
    Loop,
    /// The marks have been taken.
    Scan,
    /// Scanned for the last time before the second hand turns.
    Rotate,
    /// Everything is being armed at once; see [`super::whole`].
    Round(Round),
    /// The page table has been audited; the RAM files' holes and the marks come next.
    Audit(Sighting),
}

/// Everything.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub world: World,
    pub map: PageMap,
    pub queue: Queue,
    pub full_scan: FullScan,
    pub epochs: Vec<u64>,
    /// Where everything is armed at once: what is not.
    pub spent: RoaringBitmap,
    pub under_way: VecDeque<UnderWay>,
    /// What is under way is a sync's: it waits for each batch before it begins the next.
    pub alone: bool,
    pub at: At,
    /// A page was published with a content that it did not have when it was checked.
    pub published_wrong: bool,
}

impl State {
    pub(super) fn apart(&self) -> bool {
        let mut batches = self.under_way.iter();
        let (first, second) = (batches.next(), batches.next());
        first.zip(second).is_none_or(|(first, second)| first.apart(second))
    }
}

impl UnderWay {
    pub(super) fn pages(&self) -> &RoaringBitmap {
        match self {
            Self::Find(batch) | Self::Arm { batch, .. } => batch.pages(),
            Self::Reading { batch, .. } => batch.pages(),
            Self::Publish { batch, .. } => batch.pages(),
        }
    }

    fn epoch(&self) -> u64 {
        match self {
            Self::Find(batch) | Self::Arm { batch, .. } => batch.armed_in(),
            Self::Reading { batch, .. } => batch.armed_in(),
            Self::Publish { batch, .. } => batch.armed_in(),
        }
    }

    /// Whether no page is in both. Arming a page wipes out what the other batch's check would have seen, so this is needed unless the
    /// other is thrown away in any case.
    pub(super) fn apart(&self, other: &Self) -> bool {
        self.epoch() != other.epoch() || self.pages().is_disjoint(other.pages())
    }
}

/// The content that the map says a page has; `None` if it is stale.
pub(super) fn shown(map: &PageMap, page: u32) -> Option<u32> {
    let view = map.page(page);
    match view.state {
        PageState::Stale => None,
        PageState::Absent | PageState::Zero => Some(0),
        PageState::Current => view.fingerprint.map(|fingerprint| {
            let mut content = [0; 4];
            content.copy_from_slice(&fingerprint.as_bytes()[..4]);
            u32::from_le_bytes(content)
        }),
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.world.hash(state);
        for page in 0..self.map.pages() {
            let view = self.map.page(page);
            (view.state, shown(&self.map, page)).hash(state);
        }
        self.queue.hash(state);
        self.full_scan.hash(state);
        self.epochs.hash(state);
        self.spent.iter().for_each(|page| page.hash(state));
        self.spent.len().hash(state);
        self.under_way.hash(state);
        (self.alone && !self.under_way.is_empty()).hash(state);
        match &self.at {
            At::Loop => 0u8.hash(state),
            At::Scan => 3u8.hash(state),
            At::Rotate => 1u8.hash(state),
            At::Round(round) => (4u8, round).hash(state),
            At::Audit(seen) => {
                2u8.hash(state);
                for set in [&seen.armed, &seen.open, &seen.data] {
                    set.len().hash(state);
                    set.iter().for_each(|page| page.hash(state));
                }
            }
        }
        self.published_wrong.hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let identity = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        identity(self) == identity(other)
    }
}
