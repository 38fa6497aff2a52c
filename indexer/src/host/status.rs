//! How a VM is watched, what its guest pays for that, and how old what is known of it can be: what trackers say and readers show.

use std::time::Instant;

use memdex_wire::vm::{CoverageStatus, RegionCoverage, Tracking, Witness};

use crate::map::{Layout, LayoutRegion};

/// How well a VM is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) tracking: Tracking,
    pub(crate) reasons: Vec<String>,
    pub(crate) witnesses: Vec<Witness>,
    pub(crate) coverage: Vec<RegionCoverage>,
}

/// When the witnesses were last asked; see [`crate::watch::tracker`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Freshness {
    /// What was written before this has been noticed.
    pub(crate) as_of: Instant,
    /// The oldest mark whose write no scan has seen yet is at most this old.
    pub(crate) oldest_mark: Option<Instant>,
    /// When the last audit began.
    pub(crate) audited: Instant,
}

impl Freshness {
    /// How long a write can have gone unnoticed, in milliseconds.
    pub(crate) fn staleness_ms(&self) -> u64 {
        milliseconds(self.as_of)
    }

    /// Age of the oldest unanswered mark in milliseconds, 0 if there is none.
    pub(crate) fn oldest_mark_ms(&self) -> u64 {
        self.oldest_mark.map_or(0, milliseconds)
    }
}

/// What the guest pays for being watched, in millionths of a vCPU.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GuestShare {
    /// Lately, as estimated from the faults that were seen.
    pub(crate) paid_ppm: u64,
    /// At most.
    pub(crate) budget_ppm: u64,
}

pub(super) fn milliseconds(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

impl Status {
    /// Whether it is of these pages. If not they have just been numbered anew, and the tracker is about to say how they are watched.
    pub(super) fn covers(&self, pages: u64) -> bool {
        self.coverage.iter().map(|region| region.pages).sum::<u64>() == pages
    }

    /// Before the tracker has looked at anything.
    pub(super) fn beginning(layout: &Layout) -> Self {
        let why = "tracking is just beginning";
        let region = |region: &LayoutRegion| RegionCoverage {
            region: region.name.clone(),
            first_page: u64::from(region.first_page),
            pages: u64::from(region.pages),
            offset: region.offset,
            status: CoverageStatus::Advisory,
            reason: Some(why.to_owned()),
            missing: Vec::new(),
        };
        Self {
            tracking: Tracking::Advisory,
            reasons: vec![why.to_owned()],
            witnesses: Vec::new(),
            coverage: layout.regions().iter().map(region).collect(),
        }
    }
}
