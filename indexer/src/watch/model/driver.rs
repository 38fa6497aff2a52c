//! The tracker's steps over the modelled kernel. Each step asks the kernel one thing, and between two steps anything may happen.
//!
//! What follows from an answer is decided by `watch/protocol`, `watch/queue` and `map`: the real ones.

use memdex_wire::{Fingerprint, page::PageState};
use roaring::RoaringBitmap;

use super::{
    super::{
        protocol::{self, Batch, FullScan},
        queue::{bridged, runs},
    },
    Break, System,
    events::Event,
    layout::mapped_anew,
    state::{At, Read, State, UnderWay, shown},
    world::World,
};
use crate::map::Change;

/// What a scan looks at, apart from what is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Look {
    Awaited,
    /// Also what was published lately.
    Recent,
    /// The same, and then the second hand turns.
    LastChance,
    /// Everything.
    All,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Guest(Event),
    /// A tick: the marks are taken. A scan comes next. `due`: so many ticks that the next delayed pages are ready.
    Tick {
        due: bool,
    },
    Scan(Look),
    Rotate,
    Audit,
    /// The next batch of ready pages.
    Begin,
    /// What a sync does: the next stale pages, even those whose write is still awaited.
    BeginSync,
    /// The next step of the batch that began last.
    Advance,
    /// The pool reads a page of a batch.
    Read(usize),
    /// The next step of the batch that began first.
    Finish,
    /// Discovery found the region changed: it and those after it are laid out anew.
    Relay(usize),
    /// The next step of arming everything at once.
    Round,
}

impl System {
    /// What the tracker may do next. More than it really does: it has no clock here, so whatever can be due is.
    pub(super) fn tracker_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, batch) in state.under_way.iter().enumerate() {
            if let UnderWay::Reading { data, read, .. } = batch
                && read.len() < data.len()
            {
                actions.push(Action::Read(index));
            }
        }
        match state.under_way.back() {
            Some(UnderWay::Find(_) | UnderWay::Arm { .. }) => return actions.push(Action::Advance),
            Some(_) => {
                let finished = match &state.under_way[0] {
                    UnderWay::Reading { data, read, .. } => read.len() == data.len(),
                    UnderWay::Publish { .. } => true,
                    UnderWay::Find(_) | UnderWay::Arm { .. } => false,
                };
                if finished {
                    actions.push(Action::Finish);
                }
                let publishing = matches!(state.under_way[0], UnderWay::Publish { .. });
                if !publishing && !state.alone && state.under_way.len() < 2 && state.queue.has_ready() {
                    actions.push(Action::Begin);
                }
                if self.broken == Break::ClearUnderWay {
                    self.round_actions(state, actions);
                }
                return;
            }
            None => {}
        }
        match state.at {
            At::Loop => {}
            At::Scan => {
                actions.extend([Look::Awaited, Look::Recent].map(Action::Scan));
                if self.stalls || state.world.may_turn() {
                    actions.push(Action::Scan(Look::LastChance));
                }
                return;
            }
            At::Rotate => return actions.push(Action::Rotate),
            At::Round(_) => return self.round_actions(state, actions),
            At::Audit(_) => return actions.push(Action::Audit),
        }
        if state.queue.has_ready() {
            actions.push(Action::Begin);
        }
        self.round_actions(state, actions);
        if self.sync {
            actions.push(Action::BeginSync);
        }
        actions.push(Action::Tick { due: false });
        if state.queue.next_due().is_some() {
            actions.push(Action::Tick { due: true });
        }
        if self.audits {
            actions.push(Action::Audit);
        }
        actions.extend((0..state.epochs.len()).filter(|r| !state.world.registered[*r]).map(Action::Relay));
    }

    /// One step. Returns false if there was nothing to do.
    pub(super) fn step(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Guest(event) => state.world.happen(event, self.marks, self.broken == Break::LoseMark),
            Action::Tick { due } => {
                let ticks = state.queue.next_due().filter(|_| due).unwrap_or(0);
                (0..ticks).for_each(|_| state.queue.tick());
                self.take_marks(state);
                state.at = At::Scan;
            }
            Action::Scan(look) => self.scan(state, look),
            Action::Rotate => {
                state.at = At::Loop;
                state.world.turn();
                state.queue.rotate();
                if self.broken == Break::ScanOnce {
                    let wanted = state.full_scan.wanted();
                    state.full_scan = FullScan::default();
                    if wanted {
                        state.full_scan.want();
                    }
                } else {
                    state.full_scan.rotate();
                }
            }
            Action::Audit => self.audit(state),
            Action::Begin => return self.begin(state),
            Action::BeginSync => return self.begin_sync(state),
            Action::Advance => self.advance(state),
            Action::Read(index) => read_one(state, index),
            Action::Finish => self.finish(state),
            Action::Relay(region) => self.relay(state, region),
            Action::Round => self.round(state),
        }
        true
    }

    fn begin(&self, state: &mut State) -> bool {
        let State { world, map, queue, spent, .. } = state;
        let mut batch = queue.take(self.batch);
        let Some(first) = batch.min() else { return true };
        let region = world.region_of(first);
        let mut rest = batch.clone();
        rest.remove_range(..world.ends[region]);
        batch.remove_range(world.ends[region]..);
        queue.ready(&rest);
        let batch = protocol::to_settle(map, queue, batch, true, |pages| with_marks(world, pages));
        let spent = if self.whole && self.broken != Break::ReadSpent {
            &batch & &*spent
        } else {
            RoaringBitmap::new()
        };
        let batch = protocol::armed_only(queue, batch, spent);
        if !batch.is_empty() {
            state.alone = false;
            self.open(state, region, batch);
        }
        true
    }

    fn begin_sync(&self, state: &mut State) -> bool {
        let stale = state.map.in_state(0..u32::MAX, &[PageState::Stale]);
        let open = stale - state.queue.in_discard();
        let Some(first) = open.min() else { return false };
        let region = state.world.region_of(first);
        let range = state.world.range(region);
        let batch = open.iter().filter(|page| range.contains(page)).take(self.batch as usize).collect();
        state.alone = true;
        self.open(state, region, batch);
        true
    }

    fn open(&self, state: &mut State, region: usize, pages: RoaringBitmap) {
        let batch = Batch::new(region, state.epochs[region], pages);
        batch.make_stale(&mut state.map);
        state.under_way.push_back(UnderWay::Find(batch));
    }

    fn advance(&self, state: &mut State) {
        let batch = state.under_way.pop_back().expect("a batch has just begun");
        let next = match batch {
            UnderWay::Find(batch) => {
                let holds = |page: &u32| state.world.pages[*page as usize].file.is_some();
                let data: RoaringBitmap = batch.pages().iter().filter(holds).collect();
                let read = match self.broken {
                    Break::ReadBeforeArm => data.iter().map(|page| read(&state.world, page)).collect(),
                    _ => Vec::new(),
                };
                UnderWay::Arm { batch, data: runs(&data).collect(), read }
            }
            UnderWay::Arm { batch, data, read } => {
                let region = batch.region();
                if !state.world.registered[region] {
                    let pages = batch.into_pages();
                    mapped_anew(state, region);
                    protocol::unsettled(&mut state.queue, pages);
                    return;
                }
                let pages: Vec<u32> = data.iter().cloned().flatten().collect();
                if !self.whole {
                    pages.iter().for_each(|page| state.world.arm(*page));
                }
                UnderWay::Reading { batch: batch.armed(data, RoaringBitmap::new()), data: pages, read }
            }
            other => other,
        };
        state.under_way.push_back(next);
    }

    fn finish(&self, state: &mut State) {
        let unsettled = match state.under_way.pop_front().expect("a batch is under way") {
            UnderWay::Reading { batch, read, .. } => {
                let region = batch.region();
                let epoch = match self.broken {
                    // As if nobody had counted.
                    Break::IgnoreEpoch => batch.armed_in(),
                    _ => state.epochs[region],
                };
                let digests = read.into_iter().map(digest).collect();
                match batch.hashed::<()>(epoch, Ok(digests)) {
                    Err((pages, _)) => pages,
                    Ok(batch) if !state.world.registered[region] => {
                        mapped_anew(state, region);
                        batch.pages().clone()
                    }
                    Ok(batch) => {
                        if self.broken == Break::ClearMark {
                            for page in batch.pages() {
                                let at = state.world.page(page);
                                (at.written, at.discarded) = (false, false);
                            }
                        }
                        let written: Vec<u32> = written(&state.world, batch.pages()).iter().collect();
                        if self.whole {
                            state.spent.extend(written.iter().copied());
                        }
                        let truth = truth(&state.world, batch.pages());
                        state.under_way.push_front(UnderWay::Publish { batch, written, truth });
                        return;
                    }
                }
            }
            UnderWay::Publish { batch, written, mut truth } => {
                let pages = batch.pages().clone();
                let checked = if self.broken == Break::PublishUnchecked {
                    truth = self::truth(&state.world, &pages);
                    batch.checked(RoaringBitmap::new(), |_| RoaringBitmap::new())
                } else {
                    batch.checked(written.into_iter().collect(), |pages| with_marks(&state.world, pages))
                };
                let mut changes: Vec<Change> = Vec::new();
                let doubtful = checked.publish(true, &mut state.map, &mut state.queue, &mut changes);
                self.follow(&changes);
                for (page, truth) in pages.iter().zip(truth) {
                    state.published_wrong |=
                        !doubtful.contains(page) && shown(&state.map, page) != Some(truth);
                }
                doubtful
            }
            other => {
                state.under_way.push_front(other);
                return;
            }
        };
        protocol::unsettled(&mut state.queue, unsettled);
    }
}

fn read_one(state: &mut State, index: usize) {
    if let UnderWay::Reading { data, read, .. } = &mut state.under_way[index]
        && let Some(page) = data.get(read.len())
    {
        read.push(self::read(&state.world, *page));
    }
}

fn read(world: &World, page: u32) -> Read {
    Some(world.pages[page as usize].content()).filter(|content| *content != 0)
}

pub(super) fn digest(read: Read) -> Option<Fingerprint> {
    read.map(|content| {
        let mut bytes = [0; Fingerprint::LEN];
        bytes[..4].copy_from_slice(&content.to_le_bytes());
        Fingerprint::new(bytes)
    })
}

fn truth(world: &World, pages: &RoaringBitmap) -> Vec<u32> {
    pages.iter().map(|page| world.pages[page as usize].content()).collect()
}

fn with_marks(world: &World, pages: &RoaringBitmap) -> RoaringBitmap {
    pages.iter().filter(|page| world.marked(*page)).collect()
}

/// What a scan finds, gaps bridged as the tracker bridges them.
pub(super) fn written(world: &World, pages: &RoaringBitmap) -> RoaringBitmap {
    bridged(pages, 1).into_iter().flatten().filter(|page| world.pages[*page as usize].open()).collect()
}
