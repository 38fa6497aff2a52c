//! The reverse index: contents come, are looked up, and go.

use indexer::map::{ContentIndex, MapId, Place};
use memdex_wire::Fingerprint;

use crate::{Hot, contents, work};

/// So many that no shard of the index is near a doubling.
const HELD: u32 = 12_288;
const MAP: MapId = MapId(0);

fn prints(first: u32) -> Vec<Fingerprint> {
    (first..first + HELD).map(contents::fingerprint).collect()
}

fn fill(index: &ContentIndex, prints: &[Fingerprint]) {
    for (page, print) in prints.iter().enumerate() {
        index.insert(print, Place { map: MAP, page: page as u32 });
    }
}

fn filled() -> ContentIndex {
    let index = ContentIndex::new().expect("the kernel has random bytes");
    fill(&index, &prints(0));
    index
}

pub(crate) const INSERT: Hot = Hot {
    name: "index_insert",
    operation: "content that is new, the growth of the table included",
    operations: HELD,
    prepare: || {
        let (index, prints) = (ContentIndex::new().expect("the kernel has random bytes"), prints(0));
        work(move || {
            fill(&index, &prints);
            (index, prints)
        })
    },
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

pub(crate) const REMOVE: Hot = Hot {
    name: "index_remove",
    operation: "content that goes",
    operations: HELD,
    prepare: || {
        let (index, prints) = (filled(), prints(0));
        work(move || {
            for (page, print) in prints.iter().enumerate() {
                index.remove(print, Place { map: MAP, page: page as u32 });
            }
            assert_eq!(index.statistics().entries, 0);
            (index, prints)
        })
    },
};
