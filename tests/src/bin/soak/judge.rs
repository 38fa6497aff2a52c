//! The judge: reads a paused guest's RAM and holds every page of the map against it, as [`memdex_tests::oracle`] does, many times quicker.
//!
//! It keeps a copy of the RAM and the plain BLAKE3 of each page of it. A page that still has the same bytes as the copy, which is looked at
//! byte by byte, has the same hash; any other is hashed anew. Nothing that memdex says is used for that, no mark and no generation, and no
//! code of memdex either.

use std::collections::HashMap;

use memdex_tests::{
    PAGE,
    address_space::{Source, mappings},
    contract::{State, Vm},
    oracle,
};

use crate::{
    page_map::{PageMap, Record},
    tally::Tally,
};

/// Bytes read at once: so many stay in the cache for the comparison.
const CHUNK: usize = 256 << 10;
const PAGE_BYTES: usize = PAGE as usize;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Unknown,
    Zero,
    Hash([u8; 32]),
}

/// A region's RAM as it was when it was last read.
#[derive(Debug)]
struct Remembered {
    bytes: Vec<u8>,
    truth: Vec<Truth>,
}

/// What makes a region the same one as before: name, offset, pages, and where it is mapped.
type Key = (String, u64, u64, u64);

/// The judge of one guest.
#[derive(Debug)]
pub(crate) struct Judge {
    regions: HashMap<Key, Remembered>,
    buffer: Vec<u8>,
}

impl Judge {
    pub(crate) fn new() -> Self {
        Self { regions: HashMap::new(), buffer: vec![0; CHUNK] }
    }

    /// Holds a map against the RAM of the paused guest. With `synced` a stale page is wrong.
    ///
    /// # Panics
    /// If the RAM can't be found, or the map is not of this VM as `vm` shows it.
    pub(crate) fn compare(&mut self, vm: &Vm, map: &PageMap, synced: bool, tally: &mut Tally) {
        let covered: u64 = vm.coverage.iter().map(|region| region.pages).sum();
        assert_eq!(map.pages(), covered, "the map and the coverage of {} disagree", vm.name);
        let before = tally.checks();
        let mut hashed = 0;
        let all = mappings(vm.pid);
        let mut seen = HashMap::new();
        for region in &vm.coverage {
            let mapping = oracle::mapping_of(region, region.offset, &all);
            let source = Source::of(vm.pid, &mapping);
            let key = (region.region.clone(), region.offset, region.pages, mapping.start);
            let mut remembered =
                self.regions.remove(&key).unwrap_or_else(|| Remembered::new(region.pages as usize));
            let mut judge = |page: u64, truth| {
                let record = map.record(region.first_page + page);
                tally.states[record.state as usize] += 1;
                if let Some(problem) = problem(&record, truth, synced) {
                    let synced = if synced { "after a sync" } else { "without a sync" };
                    tally.wrong(format!(
                        "{} {synced}: page {} of {}: {problem} ({} unsettled, {} picked up)",
                        vm.name, record.page, region.region, vm.pages.unsettled, vm.picked_up
                    ));
                }
            };
            let mut next = 0;
            for run in source.data(region.offset..region.offset + region.pages * PAGE) {
                let run = (run.start - region.offset) / PAGE..(run.end - region.offset) / PAGE;
                (next..run.start).for_each(|page| judge(page, Truth::Zero));
                let mut page = run.start;
                while page < run.end {
                    let bytes = &mut self.buffer[..CHUNK.min((run.end - page) as usize * PAGE_BYTES)];
                    source.read_run(region.offset + page * PAGE, bytes);
                    for content in bytes.chunks_exact(PAGE_BYTES) {
                        let (truth, anew) = remembered.truth(page as usize, content);
                        hashed += u64::from(anew);
                        judge(page, truth);
                        page += 1;
                    }
                }
                next = run.end;
            }
            (next..region.pages).for_each(|page| judge(page, Truth::Zero));
            seen.insert(key, remembered);
        }
        self.regions = seen;
        tally.comparisons += 1;
        tally.hashed += hashed;
        if synced {
            tally.synced += tally.checks() - before;
        }
    }
}

impl Remembered {
    fn new(pages: usize) -> Self {
        Self { bytes: vec![0; pages * PAGE_BYTES], truth: vec![Truth::Unknown; pages] }
    }

    /// What a page with these bytes holds, and whether it had to be hashed for that.
    fn truth(&mut self, page: usize, content: &[u8]) -> (Truth, bool) {
        let copy = &mut self.bytes[page * PAGE_BYTES..][..PAGE_BYTES];
        let truth = &mut self.truth[page];
        if *truth != Truth::Unknown && copy == content {
            return (*truth, false);
        }
        copy.copy_from_slice(content);
        *truth = if content.iter().all(|byte| *byte == 0) {
            Truth::Zero
        } else {
            Truth::Hash(*blake3::hash(content).as_bytes())
        };
        (*truth, true)
    }
}

/// What a record claims, held against what the page holds.
fn problem(record: &Record, truth: Truth, synced: bool) -> Option<String> {
    match (record.state, record.fingerprint, truth) {
        (State::Stale, ..) => synced.then(|| "stale after a sync".to_owned()),
        (State::Absent | State::Zero, None, Truth::Zero) => None,
        (State::Current, Some(shown), Truth::Hash(truth)) if shown == truth => None,
        (state, shown, truth) => {
            let hex = |bytes| blake3::Hash::from_bytes(bytes).to_hex().to_string();
            let shown = shown.map_or_else(|| "-".to_owned(), hex);
            let holds = if let Truth::Hash(truth) = truth { hex(truth) } else { "zeros".to_owned() };
            Some(format!(
                "the map says {state:?} {shown} in generation {}, memory holds {holds}",
                record.generation
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: State, fingerprint: Option<[u8; 32]>) -> Record {
        Record { page: 1, generation: 2, state, fingerprint }
    }

    #[test]
    fn only_the_truth_passes() {
        let (a, b) = (Some([1; 32]), Truth::Hash([2; 32]));
        assert_eq!(problem(&record(State::Current, a), Truth::Hash([1; 32]), true), None);
        assert_eq!(problem(&record(State::Absent, None), Truth::Zero, true), None);
        assert_eq!(problem(&record(State::Stale, a), b, false), None);
        for (state, shown, truth) in [
            (State::Stale, a, b),
            (State::Current, a, b),
            (State::Current, a, Truth::Zero),
            (State::Current, None, b),
            (State::Zero, None, b),
            (State::Absent, a, Truth::Zero),
        ] {
            assert!(problem(&record(state, shown), truth, true).is_some(), "{state:?} {shown:?} {truth:?}");
        }
    }

    #[test]
    fn what_is_remembered_is_what_the_bytes_are() {
        let mut remembered = Remembered::new(2);
        let mut page = vec![0; PAGE_BYTES];
        assert_eq!(remembered.truth(1, &page), (Truth::Zero, true));
        assert_eq!(remembered.truth(1, &page), (Truth::Zero, false));
        page[4095] = 1;
        let hash = Truth::Hash(*blake3::hash(&page).as_bytes());
        assert_eq!(remembered.truth(1, &page), (hash, true));
        assert_eq!(remembered.truth(1, &page), (hash, false));
        page[4095] = 0;
        assert_eq!(remembered.truth(1, &page), (Truth::Zero, true));
    }
}
