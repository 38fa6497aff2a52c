//! A VM's page map in its binary form, which is many times quicker to ask for than lines of JSON. Owns the asking and the decoding, spelled
//! out once more after the table in the API's description: no code of memdex is used here.

use std::ops::Range;

use memdex_tests::{Daemon, contract::State, http};

const MEDIA_TYPE: &str = "application/vnd.memdex.pages.v1";
const HEADER: usize = 32;
const RECORD: usize = 56;

/// All pages of a VM at one moment.
#[derive(Debug)]
pub(crate) struct PageMap {
    body: Vec<u8>,
}

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) page: u64,
    pub(crate) generation: u64,
    pub(crate) state: State,
    pub(crate) fingerprint: Option<[u8; 32]>,
}

impl PageMap {
    /// Asks for the whole map.
    ///
    /// # Panics
    /// If the answer is not what the contract says.
    pub(crate) fn of(daemon: &Daemon, vm: &str) -> Self {
        let path = format!("/v1/vms/{vm}/pages");
        let answer = http::unix(daemon.socket(), "GET", &path, &[&format!("Accept: {MEDIA_TYPE}")]);
        let answer = answer.unwrap_or_else(|error| panic!("GET {path}: {error}"));
        assert_eq!(answer.status, 200, "GET {path}: {}", String::from_utf8_lossy(&answer.body));
        Self::decode(answer.body)
    }

    fn decode(body: Vec<u8>) -> Self {
        assert!(body.len() >= HEADER && body.starts_with(b"MXP1"), "not a page map");
        let map = Self { body };
        let expected = HEADER as u64 + map.pages() * RECORD as u64;
        assert_eq!(map.body.len() as u64, expected, "a page map has not a record for each page");
        assert_eq!(number(&map.body, 24..32), map.pages(), "a page map announces another number of records");
        map
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> u64 {
        number(&self.body, 16..24)
    }

    /// A page.
    ///
    /// # Panics
    /// If the record is not of this page, or makes no sense.
    pub(crate) fn record(&self, page: u64) -> Record {
        let at = HEADER + page as usize * RECORD;
        let record = &self.body[at..at + RECORD];
        let state = match record[16] {
            0 => State::Stale,
            1 => State::Absent,
            2 => State::Zero,
            3 => State::Current,
            other => panic!("page {page} has state {other}"),
        };
        let fingerprint = (record[17] == 1).then(|| record[24..].try_into().expect("32 bytes are left"));
        let record =
            Record { page: number(record, 0..8), generation: number(record, 8..16), state, fingerprint };
        assert_eq!(record.page, page, "wrong order in the page map");
        record
    }
}

fn number(bytes: &[u8], at: Range<usize>) -> u64 {
    u64::from_le_bytes(bytes[at].try_into().expect("the range has eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(pages: u64) -> Vec<u8> {
        let mut body = b"MXP1\0\x10\0\0".to_vec();
        for field in [9, pages, pages] {
            body.extend(u64::to_le_bytes(field));
        }
        for page in 0..pages {
            body.extend(page.to_le_bytes());
            body.extend(5_u64.to_le_bytes());
            body.extend([(page % 4) as u8, u8::from(page % 4 == 3), 0, 0, 0, 0, 0, 0]);
            body.extend([page as u8; 32]);
        }
        body
    }

    #[test]
    fn records_are_understood() {
        let map = PageMap::decode(body(5));
        assert_eq!(map.pages(), 5);
        let expected = Record { page: 3, generation: 5, state: State::Current, fingerprint: Some([3; 32]) };
        assert_eq!(map.record(3), expected);
        assert_eq!(map.record(4).state, State::Stale);
    }

    #[test]
    #[should_panic(expected = "a record for each page")]
    fn a_body_that_was_cut_short_is_no_map() {
        let mut body = body(5);
        body.truncate(200);
        let _ = PageMap::decode(body);
    }
}
