//! The map of a VM: publishing, going stale, the queue of what is to be read, and reading it out.

use std::{ops::Range, sync::Arc};

use indexer::{
    map::{Content, Layout, PageMap},
    watch::queue::Queue,
};
use roaring::RoaringBitmap;

use crate::{Hot, Work, contents, work};

/// Pages in a chunk of the map.
const CHUNK: u32 = 512;
/// Pages in the map.
pub(crate) const PAGES: u32 = 16 * CHUNK;
/// Every so many pages one is written.
const EVERY: u32 = 4;
/// Most pages of a batch.
const BATCH: u32 = 2048;

/// A map in which nothing is known.
fn unknown(pages: u32) -> PageMap {
    PageMap::new(Arc::new(Layout::one_region(pages)))
}

/// A map whose page n holds the content `first + n`.
pub(crate) fn known(pages: u32, first: u32) -> PageMap {
    let mut map = unknown(pages);
    publish(&mut map, &content(pages, first), &mut Vec::new());
    map
}

fn content(pages: u32, first: u32) -> Vec<Option<Content>> {
    (first..first + pages).map(|n| Some(Content::Fingerprint(contents::fingerprint(n)))).collect()
}

/// Publishes a chunk at a time, as batches of a first index come.
fn publish(map: &mut PageMap, contents: &[Option<Content>], changes: &mut Vec<indexer::map::Change>) {
    let generation = map.next_generation();
    for (chunk, contents) in contents.chunks(CHUNK as usize).enumerate() {
        map.publish(generation, true, chunk as u32 * CHUNK, contents, changes);
    }
}

/// Publishes other contents than there are.
fn publishing(mut map: PageMap, keep: impl Sized + 'static) -> Work {
    let contents = content(PAGES, 1 << 20);
    let mut changes = Vec::with_capacity(PAGES as usize);
    work(move || {
        publish(&mut map, &contents, &mut changes);
        assert_eq!((map.counts().current, changes.len()), (u64::from(PAGES), PAGES as usize));
        (map, contents, changes, keep)
    })
}

pub(crate) const PUBLISH_FIRST: Hot = Hot {
    name: "map_publish_first",
    operation: "page of a chunk that was unknown",
    operations: PAGES,
    prepare: || publishing(unknown(PAGES), ()),
};

pub(crate) const PUBLISH_AGAIN: Hot = Hot {
    name: "map_publish_again",
    operation: "page of a chunk that was written since",
    operations: PAGES,
    prepare: || {
        let mut map = known(PAGES, 0);
        map.mark_stale(std::slice::from_ref(&(0..PAGES)));
        publishing(map, ())
    },
};

pub(crate) const PUBLISH_BESIDE_SNAPSHOT: Hot = Hot {
    name: "map_publish_beside_snapshot",
    operation: "page of a chunk that a reader holds, so that it is copied first",
    operations: PAGES,
    prepare: || {
        let map = known(PAGES, 0);
        let snapshot = map.snapshot();
        publishing(map, snapshot)
    },
};

fn scattered() -> impl Iterator<Item = u32> {
    (0..PAGES).step_by(EVERY as usize)
}

pub(crate) const MARK_STALE: Hot = Hot {
    name: "map_mark_stale",
    operation: "written page, none beside another",
    operations: PAGES / EVERY,
    prepare: || {
        let mut map = known(PAGES, 0);
        let runs: Vec<Range<u32>> = scattered().map(|page| page..page + 1).collect();
        work(move || {
            assert_eq!(map.mark_stale(&runs), u64::from(PAGES / EVERY));
            (map, runs)
        })
    },
};

pub(crate) const QUEUE: Hot = Hot {
    name: "queue",
    operation: "page that is marked, seen written, taken into a batch and published",
    operations: PAGES / EVERY,
    prepare: || {
        let (mut queue, written): (_, RoaringBitmap) = (Queue::new(), scattered().collect());
        work(move || {
            for page in &written {
                queue.marked(page..page + 1);
            }
            queue.written(&written);
            let mut taken = 0;
            while queue.has_ready() {
                let batch = queue.take(BATCH);
                taken += batch.len();
                for page in batch {
                    queue.published(page..page + 1);
                }
            }
            assert_eq!(taken, u64::from(PAGES / EVERY));
            (queue, written)
        })
    },
};

pub(crate) const RECORDS: Hot = Hot {
    name: "map_records",
    operation: "page as a record, read from a snapshot",
    operations: PAGES,
    prepare: || {
        let snapshot = known(PAGES, 0).snapshot();
        let mut records = Vec::with_capacity(PAGES as usize);
        work(move || {
            snapshot.records(None).some(PAGES, |record| records.push(record));
            assert_eq!(records.len(), PAGES as usize);
            (records, snapshot)
        })
    },
};
