//! One VM that is coming: its RAM file, what each page of it holds by now, and what is still to come.
//!
//! Owns what is in place: every byte is hashed before it is written, wherever it came from, and the [ledger](Ledger) says what was written. What is
//! offered, and what is still awaited, is in [`super::offers`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use memdex_wire::{
    Fingerprint, PAGE_SIZE,
    transfer::{DIGEST_PAGES, Name, Namer, ToSource, ZERO},
};
use roaring::RoaringBitmap;
use tokio::{runtime::Handle, sync::Notify};
use tokio_util::sync::CancellationToken;

use super::offers::State;
use crate::{
    fingerprint::{Hasher, Page},
    host::{ContentSource, Shared, Vm},
    map::{Change, MapId, Place},
    memory::Ram,
    migrate::{in_flight::InFlight, ledger::Ledger, link::Speaker, record::Record},
    watch::queue::runs,
};

/// Pages read at a time when the file is looked through.
const SCAN: u32 = 256;

/// See the module.
pub(crate) struct Session {
    pub(super) record: Arc<Record>,
    pub(super) vm: Arc<Vm>,
    pub(super) shared: Arc<Shared>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) ram: Ram,
    pub(super) map: MapId,
    pub(super) speaker: Speaker,
    /// What contents are called in offers.
    pub(super) namer: Namer,
    /// Ends everything that works for this migration.
    pub(super) stop: CancellationToken,
    /// An offer has been taken in.
    pub(super) opened: Notify,
    pub(super) runtime: Handle,
    /// Held by whoever writes to the RAM file; true once nobody may any more.
    closed: RwLock<bool>,
    /// Pages that hold what the source believes, because it has said so and was obeyed. Of all others it believes that they are zeros; of a page that
    /// was withdrawn it believes what it did before.
    pub(super) told: Mutex<RoaringBitmap>,
    ledger: Mutex<Ledger>,
    state: Mutex<State>,
    failure: Mutex<Option<String>>,
}

/// A sentence that ends the migration.
pub(super) type Failure = String;

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("vm", &self.vm.id()).field("map", &self.map).finish_non_exhaustive()
    }
}

impl ContentSource for Session {
    fn content(&self, page: u32) -> Option<Fingerprint> {
        let ledger = self.ledger();
        (page < ledger.pages()).then(|| ledger.get(page)).filter(|content| *content != ZERO)
    }

    fn read(&self, page: u32, into: &mut Page) -> Option<()> {
        self.ram.read(page, into).ok()
    }

    fn contents(&self) -> u64 {
        let ledger = self.ledger();
        u64::from(ledger.pages()) - ledger.zeros()
    }

    fn each_content(&self, each: &mut dyn FnMut(u32, &Fingerprint)) {
        let pages = self.ledger().pages();
        let mut piece = Vec::new();
        // Some at a time: the migration goes on meanwhile.
        for first in (0..pages).step_by(DIGEST_PAGES) {
            {
                let ledger = self.ledger();
                let contents =
                    (first..pages.min(first + DIGEST_PAGES as u32)).map(|page| (page, ledger.get(page)));
                piece.extend(contents.filter(|(_, content)| *content != ZERO));
            }
            piece.drain(..).for_each(|(page, content)| each(page, &content));
        }
    }

    fn map_id(&self) -> MapId {
        self.map
    }
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) record: Arc<Record>,
    pub(super) vm: Arc<Vm>,
    pub(super) shared: Arc<Shared>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) ram: Ram,
    pub(super) pages: u32,
    pub(super) speaker: Speaker,
    pub(super) namer: Namer,
    pub(super) stop: CancellationToken,
}

impl Session {
    pub(super) fn new(parts: Parts) -> Self {
        let map = parts.shared.registry.new_map();
        Self {
            record: parts.record,
            vm: parts.vm,
            shared: parts.shared,
            in_flight: parts.in_flight,
            ram: parts.ram,
            map,
            speaker: parts.speaker,
            namer: parts.namer,
            stop: parts.stop,
            ledger: Mutex::new(Ledger::new(parts.pages)),
            state: Mutex::default(),
            opened: Notify::new(),
            failure: Mutex::new(None),
            closed: RwLock::new(false),
            told: Mutex::default(),
            runtime: Handle::current(),
        }
    }

    /// Hashes what the RAM file holds already: what the VM left there at its last stay need not come again.
    pub(super) fn take_stock(&self) -> Result<u64, Failure> {
        let mut hasher = Hasher::new();
        let (mut buffer, mut digests, mut known) = (Vec::new(), Vec::new(), 0);
        for run in self.ram.data().map_err(|error| error.to_string())? {
            let mut at = run.start;
            while at < run.end {
                if self.stop.is_cancelled() {
                    return Err("it was called off".to_owned());
                }
                let piece = at..run.end.min(at + SCAN);
                buffer.resize(piece.len() * PAGE_SIZE, 0);
                self.ram.read_run(piece.clone(), &mut buffer).map_err(|error| unreadable(&error))?;
                digests.clear();
                hasher.fingerprint(buffer.as_chunks().0, &mut digests);
                for (page, digest) in piece.clone().zip(&digests) {
                    if let Some(content) = digest {
                        self.note(page, *content);
                        known += 1;
                    }
                }
                at = piece.end;
            }
        }
        Ok(known)
    }

    /// What is offered is in place already.
    pub(super) fn confirm(&self, pages: &[(u32, Name)]) {
        let ledger = self.ledger();
        let there = pages
            .iter()
            .filter(|(page, name)| self.namer.is(name, &ledger.get(*page)))
            .map(|(page, _)| *page);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).extend(there);
    }

    /// Makes holes of what the RAM file held from an earlier stay and the source has said nothing of: there the guest has zeros. Late, because
    /// until the end the source may still tell of pages that have kept their content. Blocking.
    pub(super) fn forget_the_rest(&self) -> Result<(), Failure> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let populated: RoaringBitmap = self.ledger().populated().map(|(page, _)| page).collect();
        for run in runs(&(populated - &*told)) {
            self.ram.punch(run.clone()).map_err(|error| no_room(&error))?;
            run.for_each(|page| self.note(page, ZERO));
        }
        Ok(())
    }

    /// Leave to write to the RAM file, for as long as it is held.
    pub(super) fn place(&self) -> Result<RwLockReadGuard<'_, bool>, Failure> {
        let place = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *place { Err("nothing is written to the guest's memory any more".to_owned()) } else { Ok(place) }
    }

    /// Waits until nobody writes to the RAM file, and lets nobody from here on. Blocking.
    pub(super) fn close(&self) {
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// The digest of what is in place.
    pub(super) fn root(&self) -> [u8; 32] {
        self.ledger().root()
    }

    /// Ends the migration with a reason. The first one counts.
    pub(super) fn fail(&self, why: impl Into<String>) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| why.into());
        self.stop.cancel();
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes pages in a row.
    pub(super) fn write_row(&self, first: u32, bytes: &[u8]) -> Result<(), Failure> {
        match self.ram.write(first, bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                // Across the end of a region: page by page.
                bytes
                    .chunks(PAGE_SIZE)
                    .zip(first..)
                    .try_for_each(|(page, number)| self.ram.write(number, page))
                    .map_err(|error| no_room(&error))
            }
            other => other.map_err(|error| no_room(&error)),
        }
    }

    /// Copies content of this name from what this host has, and says what it is.
    pub(super) fn copy_content(&self, name: &Name, room: &mut Page) -> Option<Fingerprint> {
        self.shared.copy_content(name.prefix(), |content| self.namer.is(name, content), room)
    }

    /// Copies a page from what this host has, if it has it.
    pub(super) fn fill_one(&self, page: u32, name: &Name, room: &mut Page) -> Result<bool, Failure> {
        let Some(content) = self.copy_content(name, room) else { return Ok(false) };
        self.ram.write(page, room.as_slice()).map_err(|error| no_room(&error))?;
        self.put(page, content);
        Ok(true)
    }

    /// Notes that a page holds what the source has said, also for those who look for content.
    pub(super) fn put(&self, page: u32, content: Fingerprint) {
        self.note(page, content);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(page);
    }

    /// The same for many pages, with each lock taken once.
    pub(super) fn put_all(&self, pages: &[(u32, Fingerprint)]) {
        let changed: Vec<_> = {
            let mut ledger = self.ledger();
            let known = |content| (content != ZERO).then_some(content);
            let set = |(page, content): &(u32, Fingerprint)| {
                let before = ledger.set(*page, *content);
                Change { page: *page, before: known(before), after: known(*content) }
            };
            pages.iter().map(set).filter(|change| change.before != change.after).collect()
        };
        self.shared.index.follow(self.map, &changed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.extend(pages.iter().map(|(page, _)| *page));
    }

    fn note(&self, page: u32, content: Fingerprint) {
        let before = self.ledger().set(page, content);
        if before != content {
            self.index(page, before, content);
        }
    }

    /// Tells those who look for content.
    fn index(&self, page: u32, before: Fingerprint, content: Fingerprint) {
        let place = Place { map: self.map, page };
        if before != ZERO {
            self.shared.index.remove(&before, place);
        }
        if content != ZERO {
            self.shared.index.insert(&content, place);
        }
    }

    /// Says something to the source. Blocking.
    pub(super) fn say(&self, frame: &ToSource) -> Result<(), Failure> {
        self.runtime.block_on(self.speaker.say(frame)).map_err(|error| error.to_string())
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreadable(error: &std::io::Error) -> Failure {
    format!("the RAM file of the waiting VM cannot be read: {error}")
}

pub(super) fn no_room(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            "the destination has no room for the guest's memory: its RAM file's file system is full"
                .to_owned()
        }
        _ => format!("the RAM file of the waiting VM cannot be written: {error}"),
    }
}
