//! When is a page that was written to be read again? Owns the daemon's own answer, as it is built, and simpler ones beside it.

use std::collections::HashMap;

use indexer::watch::queue::Queue;
use roaring::RoaringBitmap;

/// What decides. Ticks are the daemon's.
pub(super) trait Policy {
    /// A scan has seen these written.
    fn written(&mut self, pages: &RoaringBitmap);

    /// A tick has passed. Returns the pages that are read now.
    fn due(&mut self) -> RoaringBitmap;

    /// They were read.
    fn published(&mut self, pages: &RoaringBitmap);

    /// A second has passed.
    fn rotate(&mut self) {}
}

/// Its name in a table, and what makes it.
pub(super) type Named = (&'static str, fn() -> Box<dyn Policy>);

/// The daemon's own comes first.
pub(super) const ALL: [Named; 8] = [
    ("**doubling delay** (memdex)", || Box::new(Ours(Queue::new()))),
    ("at once", || Box::new(Fixed::new(1))),
    ("after 0.1 s", || Box::new(Fixed::new(2))),
    ("after 0.5 s", || Box::new(Fixed::new(10))),
    ("after 3.2 s, the longest delay", || Box::new(Fixed::new(LONGEST))),
    ("fourfold delay", || Box::new(Growing::by(2))),
    ("eightfold delay", || Box::new(Growing::by(3))),
    ("doubling, halved by each quiet second", || Box::new(Cooling::default())),
];

/// The daemon's own queue.
struct Ours(Queue);

impl Policy for Ours {
    fn written(&mut self, pages: &RoaringBitmap) {
        self.0.written(pages);
    }

    fn due(&mut self) -> RoaringBitmap {
        self.0.tick();
        self.0.take(u32::MAX)
    }

    fn published(&mut self, pages: &RoaringBitmap) {
        pages.iter().for_each(|page| self.0.published(page..page + 1));
    }

    fn rotate(&mut self) {
        self.0.rotate();
    }
}

/// Pages that wait, by ticks until their time comes.
struct Wheel {
    slots: Vec<RoaringBitmap>,
    now: usize,
}

impl Wheel {
    fn new(longest: usize) -> Self {
        Self { slots: vec![RoaringBitmap::new(); longest + 1], now: 0 }
    }

    fn put(&mut self, page: u32, ticks: usize) {
        let slot = (self.now + ticks) % self.slots.len();
        self.slots[slot].insert(page);
    }

    fn tick(&mut self) -> RoaringBitmap {
        self.now = (self.now + 1) % self.slots.len();
        std::mem::take(&mut self.slots[self.now])
    }
}

/// The longest delay in ticks, as the daemon has it.
const LONGEST: usize = 64;

/// Every page so many ticks after a write.
struct Fixed {
    wheel: Wheel,
    ticks: usize,
}

impl Fixed {
    fn new(ticks: usize) -> Self {
        Self { wheel: Wheel::new(ticks), ticks }
    }
}

impl Policy for Fixed {
    fn written(&mut self, pages: &RoaringBitmap) {
        pages.iter().for_each(|page| self.wheel.put(page, self.ticks));
    }

    fn due(&mut self) -> RoaringBitmap {
        self.wheel.tick()
    }

    fn published(&mut self, _: &RoaringBitmap) {}
}

/// The daemon's rule with another growth of the delay.
struct Growing {
    wheel: Wheel,
    /// The delay grows by this power of two.
    shift: u32,
    recent: [RoaringBitmap; 2],
    heat: HashMap<u32, u32>,
}

impl Growing {
    fn by(shift: u32) -> Self {
        Self { wheel: Wheel::new(LONGEST), shift, recent: Default::default(), heat: HashMap::new() }
    }
}

impl Policy for Growing {
    fn written(&mut self, pages: &RoaringBitmap) {
        for page in pages {
            if self.recent.iter().any(|recent| recent.contains(page)) {
                let heat = self.heat.entry(page).or_default();
                *heat = (*heat + 1).min(LONGEST.ilog2() / self.shift + 1);
                self.wheel.put(page, 1 << (self.shift * (*heat - 1)));
            } else {
                self.heat.remove(&page);
                self.wheel.put(page, 1);
            }
        }
    }

    fn due(&mut self) -> RoaringBitmap {
        self.wheel.tick()
    }

    fn published(&mut self, pages: &RoaringBitmap) {
        self.recent[0] |= pages;
    }

    fn rotate(&mut self) {
        self.recent[1] = std::mem::take(&mut self.recent[0]);
    }
}

/// Doubles the delay like the daemon's own, but remembers for longer that a page was hot: each second without a write after it was read halves it.
struct Cooling {
    wheel: Wheel,
    /// Heat, and the second in which the page was read last.
    heat: HashMap<u32, (u32, u64)>,
    second: u64,
}

const HOTTEST: u32 = 7;

impl Default for Cooling {
    fn default() -> Self {
        Self { wheel: Wheel::new(1 << (HOTTEST - 1)), heat: HashMap::new(), second: 0 }
    }
}

impl Policy for Cooling {
    fn written(&mut self, pages: &RoaringBitmap) {
        for page in pages {
            let (heat, read) = self.heat.entry(page).or_insert((0, 0));
            let quiet = u32::try_from(self.second - *read).unwrap_or(u32::MAX);
            *heat = if quiet <= 1 { (*heat + 1).min(HOTTEST) } else { heat.saturating_sub(quiet - 1) };
            let ticks = if *heat == 0 { 1 } else { 1 << (*heat - 1) };
            self.wheel.put(page, ticks);
        }
    }

    fn due(&mut self) -> RoaringBitmap {
        self.wheel.tick()
    }

    fn published(&mut self, pages: &RoaringBitmap) {
        for page in pages {
            self.heat.entry(page).or_default().1 = self.second;
        }
    }

    fn rotate(&mut self) {
        self.second += 1;
        let now = self.second;
        self.heat
            .retain(|_, (heat, read)| *heat > 0 && now - *read <= u64::from(HOTTEST) + 1 || *read + 1 >= now);
    }
}
