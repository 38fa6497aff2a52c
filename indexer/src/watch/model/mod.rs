//! The protocol of the tracker, checked in every order of events that there is.
//!
//! # What is checked
//!
//! A guest with one or two writers, a balloon and a VMM that maps memory anew; the kernel in a few bits for each page ([`world`]); and the
//! tracker ([`driver`]), whose every question to the kernel is a step of its own, so that anything may happen between two of them. What
//! the tracker *concludes* is not modelled: [`super::protocol`], [`super::queue`] and [`crate::map`] are the ones that run in the
//! daemon. The model has no clock. Ticks, scans, rotations and audits come whenever they like, so what holds here holds for every choice of
//! intervals; only the one assumption that the tracker makes about time is made here too, and can be switched off (`stalls`): a fault is resolved
//! within a rotation.
//!
//! In every state that can be reached:
//!
//! - *nothing is lost*: a page shown as `current`, `zero` or `absent` with a content that it does not have is in doubt: it has a mark
//!   that nobody has taken, its region has lost its registration, or an audit would find it. However long a fault takes, marks or none;
//! - *scans find it*: an audit is not needed for that: the page has a mark, or is unprotected *and* among those that are scanned;
//! - *marks tell*: not even a scan is needed: no mark, no doubt, so the page is right. Holds for one writer, as long as nothing takes its
//!   fault for answered before it is: a second writer of the page whose store is seen, a read that brings the page in, a region that is mapped
//!   or numbered anew, a sync that does not wait. What was published meanwhile is scanned again for that;
//! - *checked*: what is published is what the page held when it was checked;
//! - *batches are apart*: no page is in two batches under way, unless one of them will be thrown away;
//! - *settles*: once the guest has done all it does, the tracker gets every page right, from wherever it is.
//!
//! A checker that finds nothing proves nothing, so each rule of the protocol is broken once ([`Break`]), and the tests expect the catch.
//!
//! # What is not
//!
//! The order in which the programs store marks and summaries and the daemon takes them (x86's memory model; the essay in
//! [`super::ebpf`]'s `marks`): here the marks are taken in one step. Pages of one call are armed and scanned in one step; they do not know of
//! each other. The loop of the tracker itself: the steps here come in more orders than its own, but they are written down a second time ([`driver`]).
//! What `verify` concludes, memory that cannot be armed, migration, and what [the tracker cannot see](super). A writer finds its page armed
//! again at most as often as the model's size says.
//!
//! # Why stateright
//!
//! Half of the state is the kernel's (page-table entries, marks) and the other half is plain data behind one thread. There are no atomics and no locks to
//! be explored, which is what loom is for; there is a transition system, which stateright explores breadth first, with the shortest way to
//! whatever is wrong.

mod driver;
mod events;
mod layout;
mod looks;
mod random;
mod state;
mod tests;
mod whole;
mod world;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use memdex_wire::page::PageState;
use roaring::RoaringBitmap;
use stateright::{Model, Property};

use self::{
    driver::{Action, Look},
    events::Budget,
    state::{At, State, shown},
    world::World,
};
use super::{
    protocol::{self, Findings, FullScan},
    queue::Queue,
};
use crate::{
    map::{Change, ContentIndex, Layout, MapId, PageMap},
    units::Hva,
    vm::descriptor::{Backing, Region},
};

/// A rule of the protocol that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Nothing,
    /// The pages of a batch are read, then armed.
    ReadBeforeArm,
    /// The marks of a batch are cleared after it was read.
    ClearMark,
    /// A batch is published without a look at page table and marks.
    PublishUnchecked,
    /// A mark that could not be made raises no flag.
    LoseMark,
    /// After a mark that names no page everything is scanned, but only once.
    ScanOnce,
    /// A batch is published although something else is mapped there since it was armed.
    IgnoreEpoch,
    /// A marked page is read without waiting for a scan to see it written.
    SpendMark,
    /// A page is read while it is being discarded.
    ReadDiscarding,
    /// Where nobody tells of discards, an audit takes what is protected and no hole for what it was.
    TrustProtection,
    /// Everything is armed while a batch is being read.
    ClearUnderWay,
    /// Marks that were set while everything was armed are thrown away.
    DropMarks,
    /// What was being migrated while everything was armed counts as armed.
    IgnoreMigrations,
    /// A page that was written since everything was armed is read all the same.
    ReadSpent,
}

/// How sure a page that is shown as known has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Promise {
    /// An audit would find what is wrong.
    Audit,
    /// A scan would.
    Scan,
    /// Only a mark, or a lost registration, may stand for what is wrong.
    Mark,
}

/// What a map shows of each page.
type Known = Vec<(PageState, Option<u32>)>;

/// A model of some size.
struct System {
    /// Pages of each region.
    regions: Vec<u32>,
    writers: usize,
    budget: Budget,
    /// Most pages in a batch.
    batch: u32,
    /// Whether eBPF marks anything.
    marks: bool,
    /// Whether a fault may take longer than a rotation.
    stalls: bool,
    audits: bool,
    /// Whether everything is armed at once, by clearing soft-dirty bits, and not page by page.
    whole: bool,
    /// Whether pages are settled whose write is awaited.
    sync: bool,
    promise: Promise,
    broken: Break,
    /// One map for each content of a map, so that states share it.
    maps: Mutex<HashMap<Known, PageMap>>,
    /// The reverse index, where it is followed.
    index: Option<(ContentIndex, MapId)>,
}

impl System {
    fn new(regions: &[u32], writers: usize, budget: Budget) -> Self {
        Self {
            regions: regions.to_vec(),
            writers,
            budget,
            batch: 1,
            marks: true,
            stalls: false,
            audits: false,
            whole: false,
            sync: false,
            promise: if writers == 1 && budget.remaps + budget.touches + budget.vague == 0 {
                Promise::Mark
            } else {
                Promise::Scan
            },
            broken: Break::Nothing,
            maps: Mutex::default(),
            index: None,
        }
    }

    fn start(&self) -> State {
        let map = PageMap::new(layout(&self.regions));
        let mut queue = Queue::new();
        queue.ready_run(0..map.pages());
        let mut world = World::new(&self.regions, self.writers, self.budget);
        world.whole = self.whole;
        let mut spent = RoaringBitmap::new();
        spent.insert_range(0..if self.whole { map.pages() } else { 0 });
        State {
            world,
            map,
            queue,
            full_scan: FullScan::default(),
            epochs: vec![0; self.regions.len()],
            spent,
            under_way: [].into(),
            alone: false,
            at: At::Loop,
            published_wrong: false,
        }
    }

    fn follow(&self, changes: &[Change]) {
        if let Some((index, map)) = &self.index {
            index.follow(*map, changes);
        }
    }

    /// Whether a page that is shown as known is right, or in doubt as promised.
    fn keeps(&self, promise: Promise, state: &State, page: u32) -> bool {
        let at = &state.world.pages[page as usize];
        if shown(&state.map, page).is_none_or(|content| content == at.content()) {
            return true;
        }
        let region = state.world.region_of(page);
        if state.world.marked(page) || state.world.overflowed || !state.world.registered[region] {
            return true;
        }
        match promise {
            Promise::Mark => false,
            Promise::Scan => {
                let steered = protocol::steered(&state.queue, true).contains(page);
                at.open() && (steered || state.full_scan.to_come() || !self.marks)
            }
            Promise::Audit => {
                let mut found = Findings::default();
                found.compare(&state.map, page..page + 1, &self.sighting(&state.world, page..page + 1));
                found.doubtful.contains(page)
            }
        }
    }

    fn all_keep(&self, promise: Promise, state: &State) -> bool {
        (0..state.map.pages()).all(|page| self.keeps(promise, state, page))
    }

    /// Lets the tracker work until every page is known and right. False if that never comes.
    fn settles(&self, state: &mut State) -> bool {
        // The longest delay of a hot page is 64 ticks.
        for _ in 0..80 {
            self.step(state, Action::Tick { due: true });
            self.step(state, Action::Scan(Look::LastChance));
            self.step(state, Action::Rotate);
            if self.promise == Promise::Audit {
                self.step(state, Action::Audit);
                self.step(state, Action::Audit);
            }
            self.whole_round(state);
            self.settle_all(state);
            let right = |page| shown(&state.map, page) == Some(state.world.pages[page as usize].content());
            if (0..state.map.pages()).all(right) {
                return true;
            }
        }
        false
    }

    /// Takes one batch after the other through all its steps.
    fn settle_all(&self, state: &mut State) {
        loop {
            let mut actions = Vec::new();
            self.tracker_actions(state, &mut actions);
            let settling = |action: &&Action| {
                matches!(action, Action::Advance | Action::Read(_) | Action::Finish | Action::Begin)
            };
            let Some(action) = actions.iter().find(settling).copied() else { return };
            self.step(state, action);
        }
    }
}

fn layout(regions: &[u32]) -> Arc<Layout> {
    let regions = regions.iter().enumerate().map(|(index, pages)| Region {
        name: format!("ram{index}"),
        start: Hva((index as u64) << 40),
        len: u64::from(*pages) * 4096,
        backing: Backing::Anonymous,
        mapping_page_size: 4096,
    });
    Arc::new(Layout::of(&regions.collect::<Vec<_>>()))
}

impl Model for System {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut events = Vec::new();
        state.world.events(&mut events);
        actions.extend(events.into_iter().map(Action::Guest));
        self.tracker_actions(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        if !self.step(&mut next, action) {
            return None;
        }
        let known = |page| (next.map.page(page).state, shown(&next.map, page));
        let key = (0..next.map.pages()).map(known).collect();
        let mut maps = self.maps.lock().expect("no checker panics while it holds this");
        next.map = maps.entry(key).or_insert(next.map).clone();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is lost", |system: &Self, state| {
                system.all_keep(Promise::Audit, state)
            }),
            Property::always("doubt is where it is promised", |system, state| {
                system.all_keep(system.promise, state)
            }),
            Property::always("checked", |system: &Self, state: &State| {
                !state.published_wrong || !system.marks
            }),
            Property::always("batches are apart", |_: &Self, state: &State| state.apart()),
            Property::always("settles", |system: &Self, state: &State| {
                let idle = state.under_way.is_empty() && matches!(state.at, At::Loop);
                !(idle && state.world.finished()) || system.settles(&mut state.clone())
            }),
        ]
    }
}
