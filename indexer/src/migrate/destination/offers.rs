//! What the source offers, and what of it is awaited.
//!
//! Owns the open offers. Contents come from this host if it has them (also from what has just been received, by this or another migration), else from the
//! source, each only once, however many pages have it. Offers are worked on one at a time; blocks come in on several threads meanwhile. All that they
//! share is under one lock, held for some map operations and never while bytes are read or written.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use memdex_wire::{
    Fingerprint, PAGE_SIZE,
    transfer::{Name, ToSource, ZERO, ZERO_NAME},
};

use super::session::{Failure, Session, no_room};
use crate::units::PageRange;

/// Offers that may be open at once.
const MAX_OPEN: usize = 16;
/// Pages that are asked for under one lock.
const LOCKED: usize = 256;
/// How long content that another migration has asked for is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Default)]
pub(super) struct State {
    batches: HashMap<u32, Batch>,
    /// Contents that will come, and the pages that wait for each. The first of them is the one that was asked for. What comes unasked is awaited
    /// by its own offer alone: each such offer is open until all of its contents have come.
    wanted: HashMap<(Option<u32>, Name), Wanted>,
    /// Pages whose content another migration has asked for.
    deferred: Vec<(Instant, Waiting)>,
}

/// A content that will come.
#[derive(Default)]
struct Wanted {
    waits: Vec<Waiting>,
    /// It has come, and is just being put in place.
    come: bool,
}

struct Batch {
    pages: Pages,
    /// Its contents come unasked.
    push: bool,
    /// Pages that wait for content.
    open: usize,
    /// Every page of it has been looked at.
    complete: bool,
}

/// The pages of an offer.
pub(super) type Pages = Arc<Vec<(u32, Name)>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    batch: u32,
    position: u16,
}

impl Session {
    /// Whether anything offered has not come yet.
    pub(super) fn has_open_offers(&self) -> bool {
        !self.state().batches.is_empty()
    }

    /// Takes in an offer: what is here is put in place, what is not is asked for. Blocking.
    pub(super) fn offer(&self, number: u32, push: bool, pages: Vec<(u32, Name)>) -> Result<(), Failure> {
        let total = self.ledger().pages();
        if pages.iter().any(|(page, _)| *page >= total) {
            return Err("the source offers a page that the VM does not have".to_owned());
        }
        let pages = Arc::new(pages);
        {
            let state = self.state();
            if state.batches.len() >= MAX_OPEN || state.batches.contains_key(&number) {
                return Err("the source offers more at once than was agreed".to_owned());
            }
        }
        self.confirm(&pages);
        let place = self.place()?;
        self.zeros(&pages)?;
        drop(place);
        if push { self.expect(number, &pages) } else { self.match_up(number, &pages) }
    }

    /// An offer whose contents come unasked: they may be here before this is done, so all is said under one lock. Blocking.
    fn expect(&self, number: u32, pages: &Pages) -> Result<(), Failure> {
        {
            let mut state = self.state();
            let mut open = 0;
            // Also what is in place by chance: each will come, and the offer is open until it has.
            for (position, (_, content)) in
                pages.iter().enumerate().filter(|(_, (_, content))| *content != ZERO_NAME)
            {
                let waiting = Waiting { batch: number, position: position as u16 };
                state.wanted.entry((Some(number), *content)).or_default().waits.push(waiting);
                open += 1;
            }
            if open > 0 {
                state
                    .batches
                    .insert(number, Batch { pages: Arc::clone(pages), push: true, open, complete: true });
                drop(state);
                self.opened.notify_waiters();
                return Ok(());
            }
        }
        self.say(&ToSource::Done { batch: number })
    }

    /// An offer of which the source sends only what is asked for. Blocking.
    fn match_up(&self, number: u32, pages: &Pages) -> Result<(), Failure> {
        let batch = Batch { pages: Arc::clone(pages), push: false, open: 0, complete: false };
        self.state().batches.insert(number, batch);
        let missing = {
            let _place = self.place()?;
            self.fill_from_here(pages)?
        };
        let mut need = Vec::new();
        // Some at a time: what comes in meanwhile wants the locks too.
        for missing in missing.chunks(LOCKED) {
            let waits = |position: u16| Waiting { batch: number, position };
            let mut asked = missing.to_vec();
            {
                let mut state = self.state();
                asked.retain(|(position, _, content)| !state.joins(content, waits(*position)));
            }
            let ours = self.in_flight.claim_all(asked.iter().map(|(.., content)| *content), self.map);
            let mut state = self.state();
            for ((position, _, content), ours) in asked.into_iter().zip(ours) {
                state.count(number, 1);
                if ours {
                    let wanted = state.wanted.entry((None, content)).or_default();
                    wanted.waits.push(waits(position));
                    // Unless another page of these has the same content.
                    if wanted.waits.len() == 1 {
                        need.push(position);
                    }
                } else {
                    state.deferred.push((Instant::now(), waits(position)));
                }
            }
        }
        {
            let contents = pages.iter().filter(|(_, content)| *content != ZERO_NAME).count();
            self.record.matched.fetch_add((contents - need.len()) as u64, Relaxed);
        }
        self.opened.notify_waiters();
        if !need.is_empty() {
            self.say(&ToSource::Need { batch: number, positions: need })?;
        }
        let done = self.state().seal(number);
        if done { self.say(&ToSource::Done { batch: number }) } else { Ok(()) }
    }

    /// Makes holes of the pages that are offered as zeros.
    fn zeros(&self, pages: &[(u32, Name)]) -> Result<(), Failure> {
        let mut runs: Vec<PageRange> = Vec::new();
        {
            let ledger = self.ledger();
            for (page, _) in pages.iter().filter(|(_, content)| *content == ZERO_NAME) {
                if ledger.get(*page) == ZERO {
                    continue;
                }
                match runs.last_mut() {
                    Some(run) if run.end == *page => run.end += 1,
                    _ => runs.push(*page..*page + 1),
                }
            }
        }
        for run in runs {
            self.ram.punch(run.clone()).map_err(|error| no_room(&error))?;
            run.for_each(|page| self.put(page, ZERO));
        }
        Ok(())
    }

    /// The pages of an open offer; waits for one that is on its way. Blocking.
    pub(super) fn pages_of(&self, number: u32) -> Result<Pages, Failure> {
        let wait = async {
            loop {
                let opened = self.opened.notified();
                tokio::pin!(opened);
                // From here on no notice is missed.
                opened.as_mut().enable();
                if let Some(batch) = self.state().batches.get(&number) {
                    return Arc::clone(&batch.pages);
                }
                opened.await;
            }
        };
        let bounded = tokio::time::timeout(crate::migrate::link::SILENCE, wait);
        self.runtime
            .block_on(async {
                tokio::select! {
                    pages = bounded => pages.ok(),
                    () = self.stop.cancelled() => None,
                }
            })
            .ok_or_else(|| "the source sends pages that it has not offered".to_owned())
    }

    /// Puts pages that have come in place. They have been hashed, and compared with `offered`. Blocking.
    pub(super) fn arrived(
        &self,
        number: u32,
        offered: &Pages,
        positions: &[u16],
        contents: &[Fingerprint],
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let place = self.place()?;
        let push = self.state().batches.get(&number).is_some_and(|batch| batch.push);
        let at = |position: &u16| offered[usize::from(*position)];
        self.claim(number, push.then_some(number), positions, at)?;
        // Pages in a row are written in one go.
        let mut from = 0;
        while from < positions.len() {
            let first = at(&positions[from]).0;
            let row = positions[from..].iter().enumerate();
            let count = row.take_while(|(i, position)| at(position).0 == first + *i as u32).count();
            let piece = &bytes[from * PAGE_SIZE..(from + count) * PAGE_SIZE];
            self.write_row(first, piece)?;
            from += count;
        }
        let put: Vec<_> = positions.iter().zip(contents).map(|(p, content)| (at(p).0, *content)).collect();
        self.put_all(&put);
        self.in_flight.all_done(positions.iter().map(|position| at(position).1), self.map);
        self.record.sent.fetch_add(positions.len() as u64, Relaxed);
        // In the reverse index by now, so whoever looks from here on finds it there. Others that wait for the same content, by the position of what has come.
        let (mut finished, mut others) = (Vec::new(), Vec::new());
        {
            let mut state = self.state();
            for (index, position) in positions.iter().enumerate() {
                let (page, name) = at(position);
                let wanted = state.wanted.remove(&(push.then_some(number), name)).unwrap_or_default();
                for waiting in wanted.waits {
                    match state.offered(waiting).filter(|(other, _)| *other != page) {
                        Some((other, _)) => others.push((index, other, waiting)),
                        None => finished.extend(state.uncount(waiting.batch)),
                    }
                }
            }
        }
        let pages = bytes.as_chunks::<PAGE_SIZE>().0;
        for (index, other, waiting) in others {
            if self.stop.is_cancelled() {
                return Err("it was called off".to_owned());
            }
            self.ram.write(other, &pages[index]).map_err(|error| no_room(&error))?;
            self.put(other, contents[index]);
            finished.extend(self.state().uncount(waiting.batch));
        }
        drop(place);
        finished.into_iter().try_for_each(|batch| self.say(&ToSource::Done { batch }))
    }

    /// Says that these are being put in place. Each content is sent once, and only where it was asked for: so no two threads ever write one page, and
    /// what the ledger says of a page is what was written to it last.
    fn claim(
        &self,
        batch: u32,
        key: Option<u32>,
        positions: &[u16],
        at: impl Fn(&u16) -> (u32, Name),
    ) -> Result<(), Failure> {
        let mut state = self.state();
        for position in positions {
            let waiting = Waiting { batch, position: *position };
            let wanted = state.wanted.get_mut(&(key, at(position).1));
            match wanted.filter(|wanted| !wanted.come && wanted.waits.contains(&waiting)) {
                Some(wanted) => wanted.come = true,
                None => return Err("the source sends pages that it was not asked for".to_owned()),
            }
        }
        Ok(())
    }

    /// A page that the source no longer has as it was offered. Others that wait for the same content ask for it themselves. Blocking.
    pub(super) fn withdrawn(&self, number: u32, position: u16) -> Result<(), Failure> {
        let offered = self.pages_of(number)?;
        let Some((_, content)) = offered.get(usize::from(position)) else {
            return Err("the source withdraws a page that it has not offered".to_owned());
        };
        let mut again = None;
        let mut finished = None;
        {
            let mut state = self.state();
            let push = state.batches.get(&number).is_some_and(|batch| batch.push);
            let key = (push.then_some(number), *content);
            let Some(wanted) = state.wanted.get_mut(&key).filter(|wanted| !wanted.come) else {
                return Ok(());
            };
            let waits = &mut wanted.waits;
            let Some(index) = waits.iter().position(|w| *w == Waiting { batch: number, position }) else {
                return Ok(());
            };
            waits.remove(index);
            match waits.first() {
                Some(next) => again = Some(*next),
                None => {
                    state.wanted.remove(&key);
                    self.in_flight.done(content, self.map);
                }
            }
            finished = state.uncount(number).or(finished);
        }
        if let Some(Waiting { batch, position }) = again {
            self.say(&ToSource::Need { batch, positions: vec![position] })?;
        }
        finished.map_or(Ok(()), |batch| self.say(&ToSource::Done { batch }))
    }

    /// Looks again for what another migration had asked for. Blocking.
    pub(super) fn look_again(&self) -> Result<(), Failure> {
        let deferred = std::mem::take(&mut self.state().deferred);
        let mut page = Box::new([0u8; PAGE_SIZE]);
        for (since, waiting) in deferred {
            let Some((number, content)) = self.offered(waiting) else { continue };
            let place = self.place()?;
            let filled = self.fill_one(number, &content, &mut page)?;
            drop(place);
            if filled {
                let done = self.state().uncount(waiting.batch);
                done.map_or(Ok(()), |batch| self.say(&ToSource::Done { batch }))?;
                continue;
            }
            if !self.in_flight.claim(content, self.map) && since.elapsed() < PATIENCE {
                self.state().deferred.push((since, waiting));
                continue;
            }
            let first = {
                let mut state = self.state();
                let wanted = state.wanted.entry((None, content)).or_default();
                wanted.waits.push(waiting);
                wanted.waits.len() == 1
            };
            if first {
                self.say(&ToSource::Need { batch: waiting.batch, positions: vec![waiting.position] })?;
            }
        }
        Ok(())
    }

    /// Whether [`Session::look_again`] has anything to do.
    pub(super) fn has_deferred(&self) -> bool {
        !self.state().deferred.is_empty()
    }

    fn offered(&self, waiting: Waiting) -> Option<(u32, Name)> {
        self.state().offered(waiting)
    }
}

impl State {
    /// Whether the content is on its way already; then the page waits for it too.
    fn joins(&mut self, content: &Name, waiting: Waiting) -> bool {
        let Some(wanted) = self.wanted.get_mut(&(None, *content)) else { return false };
        wanted.waits.push(waiting);
        self.count(waiting.batch, 1);
        true
    }

    fn offered(&self, waiting: Waiting) -> Option<(u32, Name)> {
        self.batches.get(&waiting.batch).map(|batch| batch.pages[usize::from(waiting.position)])
    }

    fn count(&mut self, batch: u32, pages: usize) {
        if let Some(batch) = self.batches.get_mut(&batch) {
            batch.open += pages;
        }
    }

    /// One page less waits. Returns the offer's number if that was the last one.
    fn uncount(&mut self, number: u32) -> Option<u32> {
        let batch = self.batches.get_mut(&number)?;
        batch.open = batch.open.saturating_sub(1);
        (batch.open == 0 && batch.complete).then(|| {
            self.batches.remove(&number);
            number
        })
    }

    /// Every page has been looked at. Whether nothing waits any more.
    fn seal(&mut self, number: u32) -> bool {
        let Some(batch) = self.batches.get_mut(&number) else { return false };
        batch.complete = true;
        let done = batch.open == 0;
        if done {
            self.batches.remove(&number);
        }
        done
    }
}
