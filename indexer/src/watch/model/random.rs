//! The whole map at random, for long: pages by the thousand in several regions and chunks, four writers, batches of hundreds, memory that is
//! mapped anew and grows and shrinks. The model of it is a vector of pages with their true content.
//!
//! Besides the promises of the small models: what readers hold follows. A snapshot never moves; a reader that asks again and again
//! for what changed since has the same as one who asks for all; the reverse index has exactly the contents of the map.

use memdex_wire::{Fingerprint, page::PageState};

use super::{
    events::Event,
    state::UnderWay,
    world::{Discard, Entry, Page, Writer},
    *,
};
use crate::{
    map::{MapSnapshot, Place},
    units::Generation,
};

/// Steps in all.
const STEPS: &str = "MEMDEX_MODEL_STEPS";
/// Where the first life begins; the others follow from it.
const SEED: &str = "MEMDEX_MODEL_SEED";
/// Steps of one life: from an empty map to a guest that has come to rest.
const LIFE: u64 = 30_000;
const NO_END: Budget = Budget {
    writes: u32::MAX,
    zeros: u32::MAX,
    touches: u32::MAX,
    discards: u32::MAX,
    remaps: u32::MAX,
    refaults: u32::MAX,
    vague: u32::MAX,
    migrations: 0,
    zaps: 0,
    clears: 0,
};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// SplitMix64: the same run for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in so many times.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// Somebody who reads the map.
struct Reader {
    kept: Option<(MapSnapshot, Vec<Option<u32>>)>,
    since: Option<Generation>,
    /// What the reader believes of each page.
    copy: Vec<Option<Fingerprint>>,
}

fn all_shown(map: &PageMap) -> Vec<Option<u32>> {
    (0..map.pages()).map(|page| shown(map, page)).collect()
}

impl Reader {
    fn look(&mut self, map: &PageMap) {
        if let Some((snapshot, then)) = &self.kept {
            assert_eq!(&all_shown(snapshot), then, "a snapshot moved");
        }
        let now = all_shown(map);
        let snapshot = map.snapshot();
        self.copy.resize(now.len(), None);
        for record in snapshot.records(self.since) {
            self.copy[record.page as usize] = record.fingerprint;
        }
        for (page, view) in snapshot.views(0..map.pages()) {
            // Of a page that went stale and came back with the content it had nothing is said: it has not changed.
            assert_eq!(
                self.copy[page as usize], view.fingerprint,
                "a reader of changes missed one of page {page}"
            );
        }
        self.since = Some(map.generation());
        self.kept = Some((snapshot, now));
    }
}

struct Life {
    system: System,
    state: State,
    dice: Dice,
    reader: Reader,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let regions = [1 + dice.below(900) as u32, 1 + dice.below(700) as u32, 1 + dice.below(60) as u32];
        let mut system = System::new(&regions, 4, NO_END);
        system.batch = 1 + dice.below(400) as u32;
        system.audits = true;
        system.sync = dice.once_in(2);
        system.index = Some((ContentIndex::new().expect("randomness"), MapId(1)));
        let state = system.start();
        let reader = Reader { kept: None, since: None, copy: Vec::new() };
        Self { system, state, dice, reader }
    }

    /// A page: any, or one of a few that are written all the time, or one of the last that were read.
    fn page(&mut self) -> u32 {
        let pages = self.state.world.pages.len();
        let reading = self.state.under_way.front().and_then(|batch| match batch {
            UnderWay::Reading { data, .. } => data.first().copied(),
            _ => None,
        });
        match (self.dice.below(4), reading) {
            (0, _) => self.dice.below(pages.min(8)) as u32,
            (1, Some(first)) => (first + self.dice.below(8) as u32).min(pages as u32 - 1),
            _ => self.dice.below(pages) as u32,
        }
    }

    fn guest(&mut self) -> Event {
        let page = self.page();
        let world = &self.state.world;
        if self.dice.once_in(4000) {
            return Event::Remap(self.dice.below(world.ends.len()));
        }
        if self.dice.once_in(12) {
            return match world.discard {
                Discard::None => Event::DiscardEnters { page, vague: self.dice.once_in(300) },
                Discard::Entered { .. } => Event::DiscardDoes,
                Discard::Done => Event::DiscardExits,
            };
        }
        if self.dice.once_in(12) && world.pages[page as usize].file.is_none() {
            return Event::Touch(page);
        }
        let writer = self.dice.below(world.writers.len());
        match world.writers[writer] {
            Writer::Idle => {
                let (zero, vague) = (self.dice.once_in(10), self.dice.once_in(500));
                Event::Write { writer, page, zero, vague }
            }
            Writer::Faulted { .. } => Event::Resolve(writer),
            Writer::Resolved { .. } => Event::Retry(writer),
        }
    }

    /// Lets one to many of the tracker's steps be made.
    fn tracker(&mut self) {
        let mut actions = Vec::new();
        self.system.tracker_actions(&self.state, &mut actions);
        if self.state.under_way.is_empty() && self.dice.once_in(200) {
            return self.replug();
        }
        let action = actions[self.dice.below(actions.len())];
        let times = if matches!(action, Action::Read(_)) { 1 + self.dice.below(64) } else { 1 };
        for _ in 0..times {
            self.system.step(&mut self.state, action);
        }
        if matches!(action, Action::Audit) {
            self.state.map.compact();
        }
    }

    /// Memory is unplugged and other memory plugged in: the last region has another size, and everything in it is new.
    fn replug(&mut self) {
        let State { world, map, queue, full_scan, epochs, .. } = &mut self.state;
        let last = world.ends.len() - 1;
        let kept = world.range(last).start;
        let pages = 1 + self.dice.below(700) as u32;
        for writer in &mut world.writers {
            if let Writer::Faulted { page, .. } | Writer::Resolved { page, .. } = writer
                && *page >= kept
            {
                *writer = Writer::Idle;
            }
        }
        if matches!(world.discard, Discard::Entered { page } if page >= kept) {
            world.discard = Discard::Done;
        }
        // Marks of the old pages may be there when the new ones have their numbers.
        world.pages.resize(
            (kept + pages) as usize,
            Page { file: None, entry: Entry::None, written: false, discarded: false },
        );
        for page in &mut world.pages[kept as usize..] {
            world.last_value += 1;
            page.file = (!self.dice.once_in(3)).then_some(world.last_value);
            page.entry = if page.file.is_some() { Entry::Open } else { Entry::None };
        }
        world.ends[last] = kept + pages;
        world.registered[last] = true;
        epochs[last] = 0;
        self.system.regions[last] = pages;
        let changes = protocol::renumber(map, queue, layout(&self.system.regions), kept);
        self.system.follow(&changes);
        full_scan.want();
        self.system.take_marks(&mut self.state);
        protocol::renumbered(&self.state.map, &mut self.state.queue, kept);
    }

    fn check(&self) {
        let State { world, map, queue, .. } = &self.state;
        assert!(!self.state.published_wrong, "published what was not there when it was checked");
        assert!(self.state.apart(), "a page is in two batches");
        for page in 0..map.pages() {
            assert!(
                self.system.keeps(Promise::Audit, &self.state, page)
                    && self.system.keeps(Promise::Scan, &self.state, page),
                "page {page} is shown as {:?} and no witness doubts it: {:?}, writers {:?}",
                map.page(page),
                world.pages[page as usize],
                world.writers
            );
        }
        let stale = map.in_state(0..map.pages(), &[PageState::Stale]);
        let mut forgotten = stale - queue.all();
        for batch in &self.state.under_way {
            forgotten -= batch.pages();
        }
        assert!(forgotten.is_empty(), "stale and nowhere to be read: {forgotten:?}");
    }

    fn check_index(&self) {
        let (index, id) = self.system.index.as_ref().expect("followed in here");
        let mut places = Vec::new();
        let mut known = 0;
        for page in 0..self.state.map.pages() {
            let Some(fingerprint) = self.state.map.page(page).fingerprint else { continue };
            known += 1;
            places.clear();
            index.candidates(fingerprint.prefix(), &mut places);
            assert!(places.contains(&Place { map: *id, page }), "the index does not know page {page}");
        }
        assert_eq!(index.statistics().entries, known, "the index knows contents that are no more");
    }

    fn live(&mut self, steps: u64) {
        for step in 0..steps {
            if self.dice.once_in(3) {
                self.tracker();
            } else {
                let event = self.guest();
                self.system.step(&mut self.state, Action::Guest(event));
            }
            if step % 8 == 0 {
                self.check();
            }
            if step % 64 == 0 {
                self.reader.look(&self.state.map);
            }
            if step % 1024 == 0 {
                self.check_index();
            }
        }
        self.come_to_rest();
    }

    /// The guest finishes what it is at; then the tracker must get everything right.
    fn come_to_rest(&mut self) {
        for writer in 0..self.state.world.writers.len() {
            while self.state.world.writers[writer] != Writer::Idle {
                self.system.step(&mut self.state, Action::Guest(Event::Resolve(writer)));
                self.system.step(&mut self.state, Action::Guest(Event::Retry(writer)));
            }
        }
        self.system.step(&mut self.state, Action::Guest(Event::DiscardDoes));
        self.system.step(&mut self.state, Action::Guest(Event::DiscardExits));
        self.system.settle_all(&mut self.state);
        assert!(self.system.settles(&mut self.state), "the guest rests, and pages are still stale or wrong");
        self.reader.look(&self.state.map);
        self.check();
        self.check_index();
    }
}

#[test]
fn the_whole_map_at_random_for_long() {
    let (steps, first) = (setting(STEPS, 300_000), setting(SEED, 1));
    let mut done = 0;
    for seed in first.. {
        if done >= steps {
            break;
        }
        // What a failure needs to be seen again.
        println!("{SEED}={seed}");
        Life::new(seed).live(LIFE);
        done += LIFE;
    }
}
