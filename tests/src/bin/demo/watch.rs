//! What is seen of a map that changes, by somebody who asks again and again what changed. Owns the judgement of when a
//! page became stale and when it was current again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use memdex_tests::contract::State;

use crate::{
    figures::count,
    page_map::{Fingerprint, Page, PageMap},
    picture::{Kind, Picture},
    stage::Stage,
};

const ROWS: u64 = 8;
/// How long a page that was read again is shown as such.
const FRESH: Duration = Duration::from_secs(1);

/// A map under watch.
pub(crate) struct Watch {
    pub(crate) generation: u64,
    picture: Picture,
    theirs: HashSet<Fingerprint>,
    stale: HashMap<u64, Stale>,
    /// Pages that were read again, and when.
    fresh: VecDeque<(Instant, u64)>,
    /// How many of those written since the beginning have been current again.
    settled: u64,
    /// How long pages were stale when they were so for the first time since the beginning.
    first_times: Vec<Duration>,
    /// Pages that have been written since the beginning, or were stale then.
    known: HashSet<u64>,
    written: u64,
    begun: Instant,
    looked: Instant,
    looks: u32,
}

/// A page that is stale now.
struct Stale {
    /// When it was first seen so; for the first time since the beginning only.
    since: Option<Instant>,
    /// Whether it was written since the beginning.
    counted: bool,
    /// What it was before, and is again if the write left it as it was.
    before: Kind,
}

impl Watch {
    pub(crate) fn new(map: &PageMap, theirs: HashSet<Fingerprint>) -> Self {
        let kinds = map.pages.iter().map(|page| Kind::of(page, &theirs)).collect();
        let old = map.pages.iter().filter(|page| page.state == State::Stale);
        let old = old.map(|page| {
            (page.page, Stale { since: None, counted: false, before: last_known(page, &theirs) })
        });
        let stale: HashMap<u64, Stale> = old.collect();
        let now = Instant::now();
        Self {
            generation: map.generation,
            picture: Picture::new(kinds, ROWS),
            known: stale.keys().copied().collect(),
            stale,
            theirs,
            fresh: VecDeque::new(),
            settled: 0,
            first_times: Vec::new(),
            written: 0,
            begun: now,
            looked: now,
            looks: 0,
        }
    }

    /// Mean time between two looks: nothing shorter can be told apart.
    pub(crate) fn gap(&self) -> Duration {
        (self.looked - self.begun) / self.looks.max(1)
    }

    /// Pages that became stale, each time.
    pub(crate) const fn written(&self) -> u64 {
        self.written
    }

    /// Pages that became current again, each time.
    pub(crate) const fn settled(&self) -> u64 {
        self.settled
    }

    /// How long pages were stale that had been quiet until then, sorted.
    pub(crate) fn times(&self) -> Vec<Duration> {
        let mut times = self.first_times.clone();
        times.sort_unstable();
        times
    }

    /// Takes in what changed since the last look, and what is stale now.
    pub(crate) fn look(&mut self, changes: &PageMap) {
        let now = Instant::now();
        let gap = now - std::mem::replace(&mut self.looked, now);
        self.looks += 1;
        self.generation = changes.generation;
        let mut stale_now = HashSet::new();
        for page in &changes.pages {
            let kind = Kind::of(page, &self.theirs);
            let before = self.picture.replace(page.page, kind);
            if kind == Kind::Stale {
                stale_now.insert(page.page);
                self.stale.entry(page.page).or_insert_with(|| {
                    self.written += 1;
                    Stale { since: self.known.insert(page.page).then_some(now), counted: true, before }
                });
            } else if !self.stale.contains_key(&page.page) {
                // written, read and hashed between two looks
                self.written += 1;
                self.settled += 1;
                if self.known.insert(page.page) {
                    self.first_times.push(gap);
                }
                self.fresh.push_back((now, page.page));
            }
        }
        self.settle(&stale_now, now);
        while self.fresh.front().is_some_and(|(at, _)| *at + FRESH < now) {
            self.fresh.pop_front();
        }
    }

    /// Notes which pages are no longer stale.
    fn settle(&mut self, stale_now: &HashSet<u64>, now: Instant) {
        let done = self.stale.extract_if(|page, _| !stale_now.contains(page));
        for (page, Stale { since, counted, before }) in done {
            if self.picture.get(page) == Kind::Stale {
                // not among the changes: its content is the old one
                self.picture.replace(page, before);
            }
            self.settled += u64::from(counted);
            self.first_times.extend(since.map(|since| now - since));
            self.fresh.push_back((now, page));
        }
    }

    /// The picture, what its signs mean, and the figures so far.
    pub(crate) fn lines(&self, stage: &Stage, elapsed: Duration) -> Vec<String> {
        let mut lines = self.picture.draw_live(stage, self.fresh.iter().map(|(_, page)| *page));
        lines.push(String::new());
        lines.push(Picture::live_legend(stage));
        lines.push(format!(
            "{:4.1} s   stale now {:>5}   written so far {:>7}   current again {:>7}",
            elapsed.as_secs_f64(),
            count(self.stale.len() as u64),
            count(self.written),
            count(self.settled),
        ));
        lines
    }
}

/// What a stale page was when it was last read.
fn last_known(page: &Page, theirs: &HashSet<Fingerprint>) -> Kind {
    match page.fingerprint {
        Some(fingerprint) if theirs.contains(&fingerprint) => Kind::Shared,
        Some(_) => Kind::Own,
        None => Kind::Zero,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(generation: u64, pages: &[(u64, State, u8)]) -> PageMap {
        let page = |(page, state, content): &(u64, State, u8)| Page {
            page: *page,
            state: *state,
            fingerprint: Some([*content; 32]),
        };
        PageMap { generation, total: 2, pages: pages.iter().map(page).collect() }
    }

    #[test]
    fn a_page_is_counted_when_it_is_stale_and_again_when_it_is_not() {
        let mut watch = Watch::new(&map(1, &[(0, State::Current, 1), (1, State::Stale, 2)]), HashSet::new());
        watch.look(&map(2, &[(0, State::Stale, 1), (1, State::Stale, 2)]));
        assert_eq!((watch.written, watch.settled, watch.stale.len()), (1, 0, 2));
        // page 0 was written with what it held already, page 1 has been stale for we don't know how long
        watch.look(&map(3, &[(1, State::Current, 3)]));
        assert_eq!((watch.written, watch.settled, watch.stale.len()), (1, 1, 0));
        assert_eq!(watch.times().len(), 1);
        assert_eq!(watch.picture.get(0), Kind::Own);
        // written and read between two looks, and not for the first time
        watch.look(&map(4, &[(1, State::Current, 4)]));
        assert_eq!((watch.written, watch.settled, watch.generation), (2, 2, 4));
        assert_eq!(watch.times().len(), 1);
    }
}
