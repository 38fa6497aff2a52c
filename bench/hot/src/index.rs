//! The reverse index: contents come, change, are looked up, and go, as a tracker tells of them: many at once.

use indexer::map::{Change, ContentIndex, MapId};
use memdex_wire::Fingerprint;

use crate::{Hot, Work, contents, work};

const HELD: u32 = 16_384;
const MAP: MapId = MapId(0);

fn prints(first: u32) -> Vec<Fingerprint> {
    (first..first + HELD).map(contents::fingerprint).collect()
}

/// Page n held the content `before + n`, and holds `after + n` now.
fn changes(before: Option<u32>, after: Option<u32>) -> Vec<Change> {
    let content = |first: Option<u32>, page: u32| first.map(|first| contents::fingerprint(first + page));
    let change = |page| Change { page, before: content(before, page), after: content(after, page) };
    (0..HELD).map(change).collect()
}

fn empty() -> ContentIndex {
    ContentIndex::new().expect("the kernel has random bytes")
}

fn filled() -> ContentIndex {
    let index = empty();
    index.follow(MAP, &changes(None, Some(0)));
    index
}

fn following(index: ContentIndex, changes: Vec<Change>) -> Work {
    let expected = changes.iter().filter(|change| change.after.is_some()).count() as u64;
    work(move || {
        index.follow(MAP, &changes);
        assert_eq!(index.statistics().entries, expected);
        (index, changes)
    })
}

pub(crate) const COME: Hot = Hot {
    name: "index_come",
    operation: "content that comes, the growth of the table included",
    operations: HELD,
    prepare: || following(empty(), changes(None, Some(0))),
};

pub(crate) const CHANGE: Hot = Hot {
    name: "index_change",
    operation: "page that holds another content than before",
    operations: HELD,
    prepare: || following(filled(), changes(Some(0), Some(HELD))),
};

pub(crate) const GO: Hot = Hot {
    name: "index_go",
    operation: "content that goes",
    operations: HELD,
    prepare: || following(filled(), changes(Some(0), None)),
};

pub(crate) const LOOK_UP: Hot = Hot {
    name: "index_lookup",
    operation: "content looked up; half of them are there",
    operations: HELD,
    prepare: || {
        let (index, prints) = (filled(), prints(HELD / 2));
        let mut places = Vec::with_capacity(HELD as usize);
        work(move || {
            for print in &prints {
                index.candidates(print.prefix(), &mut places);
            }
            assert!((HELD / 2..HELD / 2 + 20).contains(&(places.len() as u32)));
            (index, prints, places)
        })
    },
};
