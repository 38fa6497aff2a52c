//! What a peer holds: made, changed, asked; and diffs that are counted with it.

use indexer::picture::{Picture, build, known::Known};
use memdex_wire::{Fingerprint, picture::Change};

use crate::{
    Hot, contents,
    map::{self, PAGES},
    work,
};

/// Contents of the peer. The map's are the numbers up to [`PAGES`], of which it holds the upper half.
const HELD: u32 = 65_536;
const FIRST: u32 = PAGES / 2;
/// Contents that come or go.
const CHANGES: u32 = 4096;
/// Pages of the map that change.
const CHANGED: u32 = PAGES / 16;

fn prints(first: u32, count: u32) -> Vec<Fingerprint> {
    (first..first + count).map(contents::fingerprint).collect()
}

fn picture_of(prints: &[Fingerprint]) -> Picture {
    build(0x0123_4567_89AB_CDEF, prints.len() as u64, |each| prints.iter().for_each(each))
}

fn picture() -> Picture {
    picture_of(&prints(FIRST, HELD))
}

pub(crate) const BUILD: Hot = Hot {
    name: "picture_build",
    operation: "content of a host, sorted into its picture",
    operations: HELD,
    prepare: || {
        let prints = prints(FIRST, HELD);
        work(move || {
            let picture = picture_of(&prints);
            assert!(picture.complete());
            (picture, prints)
        })
    },
};

pub(crate) const APPLY: Hot = Hot {
    name: "picture_apply",
    operation: "content of a peer that comes or goes",
    operations: CHANGES,
    prepare: || {
        let mut picture = picture();
        let change = |n: u32| {
            let come = n.is_multiple_of(2);
            let number = if come { FIRST + HELD + n } else { FIRST + n };
            Change::new(contents::fingerprint(number).prefix(), come)
        };
        let changes: Vec<Change> = (0..CHANGES).map(change).collect();
        work(move || {
            let new = changes.iter().filter(|change| picture.apply(**change)).count();
            assert!(new as u32 > CHANGES - 20);
            (picture, changes)
        })
    },
};

pub(crate) const CONTAINS: Hot = Hot {
    name: "picture_contains",
    operation: "content asked for; half of them are there",
    operations: PAGES,
    prepare: || {
        let (picture, prints) = (picture(), prints(0, PAGES));
        work(move || {
            let there = prints.iter().filter(|print| picture.contains(print.prefix())).count();
            assert!((PAGES / 2..PAGES / 2 + 20).contains(&(there as u32)));
            (picture, prints)
        })
    },
};

pub(crate) const DIFF_FIRST: Hot = Hot {
    name: "diff_first",
    operation: "page of a VM that is looked at for the first time",
    operations: PAGES,
    prepare: || {
        let (map, picture) = (map::known(PAGES, 0), picture());
        let mut known = Known::default();
        work(move || {
            known.catch_up(&map, &picture);
            assert!((PAGES / 2..PAGES / 2 + 20).contains(&(known.matched() as u32)));
            (map, picture, known)
        })
    },
};

pub(crate) const DIFF_TOUCHED: Hot = Hot {
    name: "diff_touched",
    operation: "page of a chunk in which all pages were written, and none was read yet",
    operations: PAGES,
    prepare: || {
        let (mut map, picture) = (map::known(PAGES, 0), picture());
        let mut known = Known::default();
        known.catch_up(&map, &picture);
        map.mark_stale(std::slice::from_ref(&(0..PAGES)));
        work(move || {
            known.catch_up(&map, &picture);
            assert_eq!(known.matched(), 0);
            (map, picture, known)
        })
    },
};

pub(crate) const DIFF_CHANGED: Hot = Hot {
    name: "diff_changed",
    operation: "page that has changed, or has to be looked at again; all chunks have such",
    operations: 2 * CHANGED,
    prepare: || {
        let (mut map, picture) = (map::known(PAGES, 0), picture());
        let mut known = Known::default();
        known.catch_up(&map, &picture);
        let every = (PAGES / CHANGED) as usize;
        let generation = map.next_generation();
        for page in (0..PAGES).step_by(every) {
            let content = indexer::map::Content::Fingerprint(contents::fingerprint(1 << 20 | page));
            map.publish(generation, true, page, &[Some(content)], &mut Vec::new());
        }
        for page in (1..PAGES).step_by(every) {
            known.look_again(page);
        }
        work(move || {
            known.catch_up(&map, &picture);
            assert!(known.up_to_date(&map) && known.matched() > 0);
            (map, picture, known)
        })
    },
};
