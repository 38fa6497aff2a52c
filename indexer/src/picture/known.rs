//! Which pages of a VM a peer holds: kept, so that a diff is read and not worked out.
//!
//! Owns a bit for each page (the peer holds what the page was last seen to hold) and the count of those that are current. It is brought up to date in steps that
//! cost what has changed: chunks of the map in which something is new, and pages whose content has come to the peer or gone there.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use memdex_wire::{Fingerprint, page::PageState};
use roaring::RoaringBitmap;

use super::Picture;
use crate::{
    map::{CHUNK_PAGES, PageMap},
    units::Generation,
};

/// Words of bits in a chunk.
const WORDS: usize = CHUNK_PAGES / 64;

/// What a peer holds of one VM. See the module.
#[derive(Debug, Default)]
pub struct Known {
    /// The numbering of pages that the bits go by.
    layout_since: Generation,
    /// What was new in the map before this generation has been seen.
    as_of: Generation,
    /// A bit for each page: the peer holds its content, or the last known one if it is stale.
    held: Vec<u64>,
    /// For each chunk the pages that are current and held.
    matched: Vec<u16>,
    total: u64,
    /// Pages whose content has come to the peer or gone there.
    again: RoaringBitmap,
    /// Contents that have, of more pages than the reverse index names; and when they were last searched for.
    crowds: HashSet<u64>,
    searched: Option<Instant>,
}

/// Contents that are searched for together.
const CROWDS: usize = 4096;
/// Shortest time between two searches: each walks through the whole map.
const SEARCH: Duration = Duration::from_secs(2);

impl Known {
    /// The peer's picture is another one, or changed in ways that are not told page by page: every page is looked at again.
    pub fn start_over(&mut self) {
        self.as_of = Generation(0);
        self.again.clear();
        self.crowds.clear();
    }

    /// The peer's picture has changed for what this page holds.
    pub fn look_again(&mut self, page: u32) {
        self.again.insert(page);
    }

    /// The peer's picture has changed for all pages with a fingerprint of this prefix (without its lowest bit), which the reverse index does not name.
    pub fn look_for(&mut self, prefix: u64) {
        if self.crowds.len() >= CROWDS {
            self.start_over();
        } else if self.as_of > Generation(0) {
            self.crowds.insert(prefix);
        }
    }

    /// Whether there is nothing to be seen in the map.
    #[must_use]
    pub fn up_to_date(&self, map: &PageMap) -> bool {
        self.as_of == map.generation()
            && self.again.is_empty()
            && !self.may_search()
            && self.layout_since == map.layout_since()
    }

    fn may_search(&self) -> bool {
        !self.crowds.is_empty() && self.searched.is_none_or(|last| last.elapsed() >= SEARCH)
    }

    /// Takes in what is new in the map and in the picture. From here on [`Known::matched`] speaks of `map`, unless it has spoken of a later one already.
    pub fn catch_up(&mut self, map: &PageMap, picture: &Picture) {
        let chunks = (map.pages() as usize).div_ceil(CHUNK_PAGES);
        if self.layout_since != map.layout_since() || self.matched.len() != chunks {
            *self = Self {
                layout_since: map.layout_since(),
                held: vec![0; chunks * WORDS],
                matched: vec![0; chunks],
                ..Self::default()
            };
        }
        // Somebody with a later snapshot was faster: what is counted is of that, and must not be mixed with this one.
        if map.generation() < self.as_of {
            return;
        }
        if self.may_search() {
            let crowds = std::mem::take(&mut self.crowds);
            let of_these = |(_, content): &(u32, Fingerprint)| crowds.contains(&(content.prefix() & !1));
            self.again.extend(map.fingerprints().filter(of_these).map(|(page, _)| page));
            self.searched = Some(Instant::now());
        }
        let again = std::mem::take(&mut self.again);
        // The last generation that was seen may not have been at its end: it is seen twice.
        for chunk in map.touched_since(self.as_of) {
            self.look(map, picture, chunk);
        }
        // By now what is counted of each chunk is what this map says.
        for page in again.iter().take_while(|page| *page < map.pages()) {
            self.look_at(map, picture, page);
        }
        self.as_of = map.generation();
    }

    /// Looks at one page of a chunk that has been looked at.
    fn look_at(&mut self, map: &PageMap, picture: &Picture, page: u32) {
        let view = map.page(page);
        let held = view.fingerprint.is_some_and(|content| picture.contains(content.prefix()));
        let (word, bit) = (page as usize / 64, 1_u64 << (page % 64));
        if held == (self.held[word] & bit != 0) {
            return;
        }
        self.held[word] ^= bit;
        if view.held == PageState::Current {
            let matched = &mut self.matched[page as usize / CHUNK_PAGES];
            if held {
                *matched += 1;
                self.total += 1;
            } else {
                *matched -= 1;
                self.total -= 1;
            }
        }
    }

    /// Looks at one chunk.
    fn look(&mut self, map: &PageMap, picture: &Picture, chunk: usize) {
        let mut matched = 0;
        if let Some(pages) = map.bits(chunk, self.as_of) {
            let first = (chunk * CHUNK_PAGES) as u32;
            for (word, held) in self.held[chunk * WORDS..(chunk + 1) * WORDS].iter_mut().enumerate() {
                *held &= !pages.changed[word];
                let mut ask = pages.changed[word] & pages.known[word];
                while ask != 0 {
                    let bit = ask.trailing_zeros();
                    ask &= ask - 1;
                    let content = map.page(first + word as u32 * 64 + bit).fingerprint;
                    if content.is_some_and(|content| picture.contains(content.prefix())) {
                        *held |= 1 << bit;
                    }
                }
                matched += (*held & pages.current[word]).count_ones() as u16;
            }
        }
        self.total = self.total - u64::from(self.matched[chunk]) + u64::from(matched);
        self.matched[chunk] = matched;
    }

    /// Current pages of the VM, settled or not, that the peer holds.
    #[must_use]
    pub fn matched(&self) -> u64 {
        self.total
    }

    /// Bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.held.capacity() * 8 + self.matched.capacity() * 2 + self.again.serialized_size()) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use memdex_wire::picture::Change;
    use proptest::prelude::*;

    use super::*;
    use crate::map::{Content, Layout};

    const PAGES: u32 = 1300;

    fn print(n: u8) -> Fingerprint {
        Fingerprint::new(*blake3::hash(&[n]).as_bytes())
    }

    #[derive(Debug, Clone)]
    enum Step {
        Publish(u32, Vec<u8>),
        Stale(u32, u32),
        Compact,
        Peer(u8, bool),
        Merge,
        NewPicture(BTreeSet<u8>),
        Relayout(u32, u32),
        CatchUp,
        Snapshot,
        /// With the last snapshot: somebody was slower.
        Late,
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..PAGES, prop::collection::vec(0..12_u8, 1..60)).prop_map(|(first, contents)| Step::Publish(first, contents)),
            3 => (0..PAGES, 1..90_u32).prop_map(|(first, n)| Step::Stale(first, n)),
            1 => Just(Step::Compact),
            4 => (1..12_u8, any::<bool>()).prop_map(|(n, come)| Step::Peer(n, come)),
            1 => Just(Step::Merge),
            1 => prop::collection::btree_set(1..12_u8, 0..12).prop_map(Step::NewPicture),
            1 => (1..PAGES, 0..PAGES).prop_map(|(pages, keep)| Step::Relayout(pages, keep)),
            4 => Just(Step::CatchUp),
            2 => Just(Step::Snapshot),
            2 => Just(Step::Late),
        ]
    }

    fn of(pages: u32) -> Arc<Layout> {
        Arc::new(Layout::one_region(pages))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]
        /// However map and peer change, and whenever it is brought up to date: the same as counting anew.
        #[test]
        fn what_is_known_is_what_a_count_would_say(steps in prop::collection::vec(steps(), 0..60)) {
            let mut map = PageMap::new(of(PAGES));
            let mut peer: BTreeSet<u8> = [1, 2, 3].into();
            let picture_of = |peer: &BTreeSet<u8>| {
                super::super::tests::picture(peer.iter().map(|n| print(*n).prefix()))
            };
            let mut picture = picture_of(&peer);
            let mut known = Known::default();
            let mut earlier = map.snapshot();
            for step in steps.into_iter().chain([Step::CatchUp]) {
                match step {
                    Step::Publish(first, contents) => {
                        let contents: Vec<Option<Content>> = contents
                            .into_iter()
                            .take(map.pages().saturating_sub(first) as usize)
                            .map(|n| Some(if n == 0 { Content::Zero } else { Content::Fingerprint(print(n)) }))
                            .collect();
                        if !contents.is_empty() {
                            map.publish(map.next_generation(), true, first, &contents, &mut Vec::new());
                        }
                    }
                    Step::Stale(first, n) => {
                        let end = (first + n).min(map.pages());
                        if first < end { map.mark_stale(std::slice::from_ref(&(first..end))); }
                    }
                    Step::Compact => map.compact(),
                    Step::Peer(n, come) => {
                        if come { peer.insert(n); } else { peer.remove(&n); }
                        picture.apply(Change::new(print(n).prefix(), come));
                        if n % 3 == 0 {
                            // As if the index did not name them all.
                            known.searched = None;
                            known.look_for(print(n).prefix() & !1);
                            continue;
                        }
                        for page in 0..map.pages() {
                            if map.page(page).fingerprint == Some(print(n)) { known.look_again(page); }
                        }
                    }
                    Step::Merge => picture = picture.merged(),
                    Step::NewPicture(contents) => {
                        peer = contents;
                        picture = picture_of(&peer);
                        known.start_over();
                    }
                    Step::Relayout(pages, keep) => drop(map.relayout(of(pages), keep)),
                    Step::Snapshot => earlier = map.snapshot(),
                    Step::Late => {
                        known.catch_up(&earlier, &picture);
                        prop_assert!(known.matched() <= u64::from(PAGES));
                    }
                    Step::CatchUp => {
                        known.catch_up(&map, &picture);
                        prop_assert!(known.up_to_date(&map));
                        let count = (0..map.pages()).filter(|page| {
                            let view = map.page(*page);
                            view.held == PageState::Current
                                && peer.iter().any(|n| Some(print(*n)) == view.fingerprint)
                        });
                        prop_assert_eq!(known.matched(), count.count() as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn a_slower_reader_with_an_older_snapshot_does_not_mix_the_two() {
        let mut map = PageMap::new(of(PAGES));
        let content = [Some(Content::Fingerprint(print(1)))];
        map.publish(map.next_generation(), true, 0, &content, &mut Vec::new());
        let mut picture = super::super::tests::picture([print(1).prefix()]);
        let mut known = Known::default();
        let earlier = map.snapshot();
        map.mark_stale(std::slice::from_ref(&(0..1)));
        known.catch_up(&map, &picture);
        assert_eq!(known.matched(), 0);
        // The content goes from the peer: in the earlier snapshot the page was current, and was never counted.
        picture.apply(Change::new(print(1).prefix(), false));
        known.look_again(0);
        known.catch_up(&earlier, &picture);
        assert_eq!(known.matched(), 0);
        map.publish(map.next_generation(), true, 0, &content, &mut Vec::new());
        known.catch_up(&map, &picture);
        assert_eq!(known.matched(), 0, "what was to be looked at again was not forgotten");
    }
}
