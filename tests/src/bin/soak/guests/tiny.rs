//! Tiny KVM guests: every way to change guest memory, at random.

use std::collections::BTreeMap;

use memdex_tests::{
    PAGE, Tiny,
    tiny::{Options, Ram},
};

use super::Guest;
use crate::{random::Random, world::World};

/// Guest page where plugged slots may begin; below it is the first slot, above it there is room up to 4 GiB.
const PLUGGED: u64 = 1 << 17;
/// Guest pages from one place for a plugged slot to the next.
const PLACE: u64 = 1 << 14;
const PLACES: u64 = 8;

/// A plugged slot: its place and its pages.
#[derive(Debug, Clone, Copy)]
struct Slot {
    place: u64,
    pages: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct TinyGuest {
    tiny: Tiny,
    pages: u64,
    private: bool,
    /// By id; `None` if this guest has none.
    slots: Option<BTreeMap<u64, Slot>>,
    plugged: u64,
}

impl TinyGuest {
    pub(super) fn start(world: &World<'_>, prefix: &str, slots: bool, random: &mut Random) -> Self {
        let mib = if slots { 16 } else { random.one_of(&[64, 128, 192, 256]) };
        let file = Ram::File(world.scratch.shm(&format!("ram-{prefix}")));
        let ram = random.one_of(&[Ram::Memfd, file, Ram::Anonymous]);
        let options = Options {
            mib,
            ram: ram.clone(),
            log: random.one_of(&["none", "bitmap", "ring"]),
            uid: random.chance(25).then_some(65534),
            ..Options::default()
        };
        let mut tiny = Tiny::start_with(world.scratch, &world.scratch.name(prefix), &options);
        let pages = mib << 8;
        // Most pages hold something from the start: to judge empty ones is easy.
        tiny.write(1, pages - 1, random.next() as u32);
        tiny.run(&format!("zero {} {}", pages / 2, pages / 16));
        let rate = random.one_of(&[200, 2000, 8000]);
        tiny.run(&format!("loop {rate} 1 {}", pages - 1));
        Self { tiny, pages, private: ram == Ram::Anonymous, slots: slots.then(BTreeMap::new), plugged: 0 }
    }

    /// A few pages of the first slot, none of which is the guest's program.
    fn run_of(&self, random: &mut Random, most: u64) -> (u64, u64) {
        let count = random.between(1..most);
        (random.between(1..self.pages - count), count)
    }

    fn discard(&mut self, random: &mut Random) {
        let (first, count) = self.run_of(random, 64);
        let how = if self.private { "dontneed" } else { random.one_of(&["punch", "remove", "dontneed"]) };
        self.tiny.run(&match how {
            "punch" => format!("punch 0 {first} {count}"),
            how => format!("madvise 0 {first} {count} {how}"),
        });
    }

    fn change_slots(&mut self, random: &mut Random) {
        let Some(slots) = &mut self.slots else { return };
        let free: Vec<u64> =
            (0..PLACES).filter(|place| slots.values().all(|slot| slot.place != *place)).collect();
        let there: Vec<u64> = slots.keys().copied().collect();
        let at = |place: u64| PLUGGED + place * PLACE;
        let choice = random.between(0..3);
        if there.is_empty() || (choice == 0 && there.len() < 4) {
            let id = (1..).find(|id| !slots.contains_key(id)).expect("few are taken");
            let place = random.one_of(&free);
            // A length of its own for each, by which the judge tells private ones apart; and no two together are as long as another.
            self.plugged += 1;
            let pages = 600 + self.plugged % 400;
            self.tiny.run(&format!("slot add {id} {} {pages}", at(place)));
            slots.insert(id, Slot { place, pages });
            self.tiny.write(at(place), pages / 2, random.next() as u32);
        } else if choice == 1 {
            let id = random.one_of(&there);
            self.tiny.run(&format!("slot del {id}"));
            slots.remove(&id);
        } else {
            let (id, place) = (random.one_of(&there), random.one_of(&free));
            self.tiny.run(&format!("slot move {id} {}", at(place)));
            if let Some(slot) = slots.get_mut(&id) {
                slot.place = place;
            }
            self.tiny.write(at(place), 100, random.next() as u32);
        }
    }
}

impl Guest for TinyGuest {
    fn pid(&self) -> u32 {
        self.tiny.pid()
    }

    fn memory_bytes(&self) -> u64 {
        let plugged: u64 = self.slots.iter().flat_map(BTreeMap::values).map(|slot| slot.pages).sum();
        (self.pages + plugged) * PAGE
    }

    fn act(&mut self, random: &mut Random) {
        let key = random.next() as u32;
        match random.between(0..10) {
            0..4 => {
                let (first, count) = self.run_of(random, 1500);
                self.tiny.write(first, count, key);
            }
            4 => {
                let (first, count) = self.run_of(random, 64);
                self.tiny.run(&format!("poke {first} {count} {key}"));
            }
            5 => {
                let (first, count) = self.run_of(random, 128);
                self.tiny.run(&format!("fill {first} {count}"));
            }
            6 => {
                let (first, count) = self.run_of(random, 128);
                self.tiny.run(&format!("zero {first} {count}"));
            }
            7 => self.discard(random),
            _ if self.slots.is_some() => self.change_slots(random),
            _ => self.discard(random),
        }
    }

    fn pause(&mut self) {
        self.tiny.run("pause");
    }

    fn resume(&mut self) -> Result<(), String> {
        self.tiny.run("resume");
        Ok(())
    }
}
