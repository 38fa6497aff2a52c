//! Records of a page map as bytes, and back.

use memdex_wire::{
    bulk::{PAGE_RECORD, decode_page, encode_page},
    page::PageRecord,
};

use crate::{
    Hot,
    map::{self, PAGES},
    work,
};

fn records() -> Vec<PageRecord> {
    map::known(PAGES, 0).snapshot().records(None).collect()
}

fn encode(records: &[PageRecord], out: &mut Vec<u8>) {
    for record in records {
        encode_page(record, out);
    }
}

pub(crate) const ENCODE: Hot = Hot {
    name: "wire_encode",
    operation: "record of a page, encoded",
    operations: PAGES,
    prepare: || {
        let (records, mut out) = (records(), Vec::with_capacity(PAGES as usize * PAGE_RECORD));
        work(move || {
            encode(&records, &mut out);
            (records, out)
        })
    },
};

pub(crate) const DECODE: Hot = Hot {
    name: "wire_decode",
    operation: "record of a page, decoded",
    operations: PAGES,
    prepare: || {
        let (records, mut bytes) = (records(), Vec::new());
        encode(&records, &mut bytes);
        let mut out = Vec::with_capacity(records.len());
        work(move || {
            out.extend(bytes.as_chunks().0.iter().map(decode_page));
            assert!(out.len() == records.len() && out.iter().all(Result::is_ok));
            (bytes, out)
        })
    },
};
