//! What peers hold, as far as they have told, and what of each VM is there.
//!
//! Owns one state for each peer that is followed. [`subscribe`](super::subscribe) fills it, diffs read it. Memory is bounded for each: a picture of at most as many contents as
//! the setting `peer_picture_mib` has room for, and a bit for each page of each VM.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use memdex_wire::{
    diff::DiffCounts,
    picture::{Change, MAX_CHANGES, Position},
};

use super::{Picture, build::IN_BUCKET, known::Known};
use crate::{
    host::Vm,
    map::{ContentIndex, MapId, MapSnapshot},
};

/// Longest silence of a peer after which its picture still counts: ten signs of life. Whoever asks then asks the peer itself.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(10);

/// The peers that are followed, by name.
#[derive(Debug, Default)]
pub struct Pictures(BTreeMap<String, Arc<PeerPicture>>);

/// One peer.
#[derive(Debug)]
pub struct PeerPicture {
    /// Contents that are taken at most.
    most: u64,
    /// Held for microseconds, but for the first look at a VM and for a merge: some tens of milliseconds for each million pages.
    state: Mutex<State>,
    /// Of the state as it was left last.
    shown: Mutex<(PeerFigures, Option<Instant>)>,
}

/// What became of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Applied {
    /// They are in the picture.
    Well,
    /// They are, but the picture has grown far beyond what it was made for, or has had so many changes that what two contents with one tag did to it adds up: a new
    /// one should be asked for.
    WornOut,
    /// The peer holds more than is taken.
    TooMuch,
}

#[derive(Debug, Default)]
struct State {
    picture: Option<Picture>,
    position: Option<Position>,
    heard: Option<Instant>,
    known: HashMap<MapId, Known>,
    pictures: u64,
    changes: u64,
    /// Changes applied to this picture.
    since_picture: u64,
}

/// What is known without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDiff {
    /// Pages by what would have to be done with them.
    pub pages: DiffCounts,
    /// Time since the peer last said that the picture is up to date.
    pub age: Duration,
}

/// Figures of one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PeerFigures {
    /// Contents in its picture.
    pub contents: u64,
    /// Bytes for the picture, and for what is known of VMs.
    pub bytes: u64,
    /// Time since it was last heard; `None`: there is no picture.
    pub age: Option<Duration>,
    /// Pictures received.
    pub pictures: u64,
    /// Changes received.
    pub changes: u64,
}

impl Pictures {
    /// States for peers of these names. `bytes`: room for the picture of each; with none no peer is followed.
    #[must_use]
    pub fn new<'a>(names: impl Iterator<Item = &'a str>, bytes: u64) -> Self {
        let most = bytes / BYTES_PER_CONTENT;
        let states =
            names.filter(|_| most > 0).map(|name| (name.to_owned(), Arc::new(PeerPicture::new(most))));
        Self(states.collect())
    }

    /// The peers, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<PeerPicture>)> {
        self.0.iter().map(|(name, peer)| (name.as_str(), peer))
    }

    /// The peer of this name, if it is followed.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<PeerPicture>> {
        self.0.get(name)
    }
}

/// Changes after which a picture is worn out, for each content, and at least.
const WORN: u64 = 4;
const FEW_CHANGES: u64 = 1 << 22;

/// Two for the rest of a content, its share of the buckets, and its share of the changes that are not merged yet.
const BYTES_PER_CONTENT: u64 = 4;

impl PeerPicture {
    /// A peer that has told nothing yet, and is believed up to `most` contents.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self { most, state: Mutex::default(), shown: Mutex::default() }
    }

    /// Contents that are taken at most.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most
    }

    /// The last that was applied: where to go on.
    pub(super) fn position(&self) -> Option<Position> {
        self.lock().position
    }

    /// A whole picture has come.
    pub fn replace(&self, picture: Picture, position: Position) {
        let mut state = self.lock();
        state.picture = Some(picture.snug());
        state.position = Some(position);
        // As old as it took to make and send: the first changes make it new.
        state.heard = None;
        state.pictures += 1;
        state.since_picture = 0;
        state.known.values_mut().for_each(Known::start_over);
        self.show(&state);
    }

    /// Changes have come, or a sign of life.
    pub fn apply(&self, changes: &[Change], position: Position, index: &ContentIndex) -> Applied {
        let mut state = self.lock();
        let State { picture: Some(picture), known, .. } = &mut *state else { return Applied::Well };
        let mut places = Vec::new();
        for change in changes {
            // Each further place of a content is told too: nothing new.
            if !picture.apply(*change) {
                continue;
            }
            places.clear();
            if index.candidates(change.prefix(), &mut places) {
                known.values_mut().for_each(|known| known.look_for(change.prefix()));
            }
            for place in &places {
                if let Some(known) = known.get_mut(&place.map) {
                    known.look_again(place.page);
                }
            }
        }
        if picture.wants_merge() {
            *picture = picture.merged();
        }
        let (contents, keys) = (picture.contents() + picture.unmerged(), picture.keys());
        state.changes += changes.len() as u64;
        state.since_picture += changes.len() as u64;
        state.position = Some(position);
        // With a full frame more is waiting: this is not yet what the peer holds now.
        if changes.len() < MAX_CHANGES {
            state.heard = Some(Instant::now());
        }
        let applied = if contents > self.most {
            Applied::TooMuch
        } else if contents > 2 * u64::from(keys.buckets()) * IN_BUCKET
            || state.since_picture > (contents * WORN).max(FEW_CHANGES)
        {
            // The next picture is made anew.
            state.position = None;
            Applied::WornOut
        } else {
            Applied::Well
        };
        self.show(&state);
        applied
    }

    /// The peer holds more than it may tell, or breaks the rules: what it told counts no more.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        *state = State { pictures: state.pictures, changes: state.changes, ..State::default() };
        self.show(&state);
    }

    /// What the peer lacks of a VM, if that is known. A VM that is looked at for the first time takes some tenths of a second for each million pages.
    #[must_use]
    pub fn diff(&self, map: MapId, snapshot: &MapSnapshot) -> Option<KnownDiff> {
        let mut state = self.lock();
        let age = state.heard?.elapsed();
        if age > LONGEST_SILENCE {
            return None;
        }
        let State { picture: Some(picture), known, .. } = &mut *state else { return None };
        let known = known.entry(map).or_default();
        known.catch_up(snapshot, picture);
        // Somebody with a later snapshot may have been here before.
        let counts = snapshot.held_counts();
        let matched = known.matched().min(counts.current);
        let zero = counts.absent + counts.zero;
        let missing = counts.current - matched;
        let pages = DiffCounts { total: counts.total, zero, matched, missing, stale: counts.stale };
        self.show(&state);
        Some(KnownDiff { pages, age })
    }

    /// Whether what is known of a VM is up to date.
    fn up_to_date(&self, vm: &Vm) -> bool {
        let state = self.lock();
        state.picture.is_none()
            || state.known.get(&vm.map_id()).is_some_and(|known| known.up_to_date(&vm.map()))
    }

    /// Figures, without waiting for whoever works on the state.
    #[must_use]
    pub fn figures(&self) -> PeerFigures {
        let (figures, heard) = *self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        PeerFigures { age: heard.map(|heard| heard.elapsed()), ..figures }
    }

    fn show(&self, state: &State) {
        let picture = state.picture.as_ref();
        let known: u64 = state.known.values().map(Known::bytes).sum();
        let figures = PeerFigures {
            contents: picture.map_or(0, Picture::contents),
            bytes: picture.map_or(0, Picture::bytes) + known,
            age: None,
            pictures: state.pictures,
            changes: state.changes,
        };
        let heard = state.heard.filter(|_| picture.is_some());
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = (figures, heard);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings what is known of all these VMs up to date for all peers, and forgets others.
pub(super) fn keep(pictures: &Pictures, vms: &[Arc<Vm>]) {
    for (_, peer) in pictures.iter() {
        peer.lock().known.retain(|map, _| vms.iter().any(|vm| vm.map_id() == *map));
    }
    for vm in vms {
        let behind: Vec<_> = pictures.iter().filter(|(_, peer)| !peer.up_to_date(vm)).collect();
        if behind.is_empty() {
            continue;
        }
        let snapshot = vm.snapshot();
        for (_, peer) in behind {
            let _ = peer.diff(vm.map_id(), &snapshot);
        }
    }
}
