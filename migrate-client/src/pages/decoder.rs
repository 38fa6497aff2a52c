//! Bytes in pieces of any size become page records, one after the other.
//!
//! Owns what makes a map believable: page order, region bounds, the announced number of records. Never waits and never
//! reads from a connection.

use bytes::{Buf, Bytes};
use memdex_wire::{
    PAGE_SIZE,
    bulk::{self, PAGE_RECORD, PAGES_HEADER, PagesHeader},
    page::{PageRecord, PageState},
    vm::RegionCoverage,
};

use crate::limits;

/// What a decoder says next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Record(PageRecord),
    More,
    End,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The map does not fit the coverage list: the VM's regions have changed in between.
    Layout,
    Body(String),
}

/// Turns pieces of a body into records.
#[derive(Debug)]
pub(super) struct Decoder {
    regions: Vec<Region>,
    /// Start of an entry that goes on in the next piece. At most one record long.
    rest: Vec<u8>,
    piece: Bytes,
    ended: bool,
    header: Option<PagesHeader>,
    taken: u64,
    /// No record may name a page before this one.
    next_page: u64,
}

#[derive(Debug, Clone, Copy)]
struct Region {
    first_page: u64,
    pages: u64,
    offset: u64,
}

impl Decoder {
    pub(super) fn new(coverage: &[RegionCoverage]) -> Self {
        let regions = coverage
            .iter()
            .map(|r| Region { first_page: r.first_page, pages: r.pages, offset: r.offset })
            .collect();
        Self {
            regions,
            rest: Vec::with_capacity(PAGE_RECORD),
            piece: Bytes::new(),
            ended: false,
            header: None,
            taken: 0,
            next_page: 0,
        }
    }

    /// Adds the next piece; the one before must have been used up, that is: the last step was `More`.
    pub(super) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "ask for entries until there are no more");
        self.piece = piece;
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Takes `N` bytes if there are as many.
    fn entry<const N: usize>(&mut self) -> Option<[u8; N]> {
        let wanted = N - self.rest.len();
        if self.piece.len() < wanted {
            self.rest.extend_from_slice(&self.piece);
            self.piece.clear();
            return None;
        }
        let mut entry = [0; N];
        let (start, end) = entry.split_at_mut(self.rest.len());
        start.copy_from_slice(&self.rest);
        end.copy_from_slice(&self.piece[..wanted]);
        self.rest.clear();
        self.piece.advance(wanted);
        Some(entry)
    }

    pub(super) fn header(&mut self) -> Result<Option<PagesHeader>, Fault> {
        let Some(bytes) = self.entry::<PAGES_HEADER>() else {
            return if self.ended {
                Err(Fault::Body("it ends within its header".to_owned()))
            } else {
                Ok(None)
            };
        };
        let header =
            PagesHeader::decode(&bytes, limits::MAX_PAGES).map_err(|e| Fault::Body(e.to_string()))?;
        if header.records > header.pages {
            return Err(Fault::Body(format!("{} records for {} pages", header.records, header.pages)));
        }
        let covered = self.regions.iter().fold(0u64, |sum, region| sum.saturating_add(region.pages));
        if covered != header.pages {
            return Err(Fault::Layout);
        }
        self.header = Some(header);
        Ok(Some(header))
    }

    pub(super) fn record(&mut self) -> Result<Step, Fault> {
        let announced = self.header.map_or(0, |header| header.records);
        if self.taken == announced {
            if !self.rest.is_empty() || !self.piece.is_empty() {
                return Err(Fault::Body(format!("more than the {announced} records it announces")));
            }
            return Ok(if self.ended { Step::End } else { Step::More });
        }
        let Some(bytes) = self.entry::<PAGE_RECORD>() else {
            if self.ended {
                return Err(Fault::Body(format!("{} records of the {announced} it announces", self.taken)));
            }
            return Ok(Step::More);
        };
        let record = bulk::decode_page(&bytes).map_err(|error| Fault::Body(error.to_string()))?;
        self.taken += 1;
        self.place(record).map(Step::Record)
    }

    /// Checks a record against what came before, and fills in its offset.
    fn place(&mut self, mut record: PageRecord) -> Result<PageRecord, Fault> {
        let page = record.page;
        if page < self.next_page {
            return Err(Fault::Body(format!("page {page} out of order")));
        }
        let named = record.fingerprint.is_some();
        if matches!(record.state, PageState::Current) != named && record.state != PageState::Stale {
            return Err(Fault::Body(format!("page {page} has a state that contradicts its fingerprint")));
        }
        let region = self.regions.get(record.region as usize).ok_or(Fault::Layout)?;
        let within = page.checked_sub(region.first_page).filter(|within| *within < region.pages);
        let bytes = within.and_then(|pages| pages.checked_mul(PAGE_SIZE as u64)).ok_or(Fault::Layout)?;
        record.offset = bytes
            .checked_add(region.offset)
            .ok_or_else(|| Fault::Body(format!("page {page} lies beyond the end of any file")))?;
        self.next_page = page + 1;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use memdex_wire::{Fingerprint, vm::CoverageStatus};
    use proptest::prelude::*;

    use super::*;

    fn coverage(sizes: &[u64]) -> Vec<RegionCoverage> {
        let mut first_page = 0;
        sizes
            .iter()
            .map(|&pages| {
                let region = "ram".to_owned();
                let c = RegionCoverage {
                    region,
                    first_page,
                    pages,
                    offset: first_page * 8,
                    status: CoverageStatus::Exact,
                    reason: None,
                    missing: Vec::new(),
                };
                first_page += pages;
                c
            })
            .collect()
    }

    fn record(page: u64, regions: &[RegionCoverage]) -> PageRecord {
        let region = regions.iter().rposition(|r| r.first_page <= page && r.pages > 0).unwrap();
        let state =
            [PageState::Stale, PageState::Absent, PageState::Zero, PageState::Current][page as usize % 4];
        PageRecord {
            page,
            region: region as u32,
            offset: (page - regions[region].first_page) * 4096 + regions[region].offset,
            state,
            fingerprint: (state == PageState::Current).then(|| Fingerprint::new([page as u8; 32])),
            generation: page * 3,
        }
    }

    fn body(regions: &[RegionCoverage], records: &[PageRecord]) -> Vec<u8> {
        let pages = regions.iter().map(|r| r.pages).sum();
        let mut body = PagesHeader { generation: 9, pages, records: records.len() as u64 }.encode().to_vec();
        for record in records {
            bulk::encode_page(record, &mut body);
        }
        body
    }

    /// Feeds a body in pieces that end at `cuts`.
    fn decode(regions: &[RegionCoverage], body: &[u8], cuts: &[usize]) -> Result<Vec<PageRecord>, Fault> {
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (body.len() + 1)).chain([body.len()]).collect();
        ends.sort_unstable();
        let (mut ends, mut from) = (ends.into_iter(), 0);
        let mut decoder = Decoder::new(regions);
        let mut feed = |decoder: &mut Decoder| match ends.next() {
            Some(end) => {
                decoder.push(Bytes::copy_from_slice(&body[from..end]));
                from = end;
            }
            None => decoder.end(),
        };
        while decoder.header()?.is_none() {
            feed(&mut decoder);
        }
        let mut records = Vec::new();
        loop {
            match decoder.record()? {
                Step::Record(record) => records.push(record),
                Step::More => feed(&mut decoder),
                Step::End => return Ok(records),
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_records(
            sizes in prop::collection::vec(1u64..40, 1..4),
            chosen in prop::collection::btree_set(0u64..160, 0..60),
            cuts in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let regions = coverage(&sizes);
            let pages: u64 = sizes.iter().sum();
            let records: Vec<_> = chosen.into_iter().filter(|p| *p < pages).map(|p| record(p, &regions)).collect();
            prop_assert_eq!(decode(&regions, &body(&regions, &records), &cuts).unwrap(), records);
        }

        #[test]
        fn a_damaged_map_never_gives_a_page_outside_its_region(
            damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
            cut: usize, cuts in prop::collection::vec(any::<usize>(), 0..5),
        ) {
            let regions = coverage(&[8, 8]);
            let records: Vec<_> = (0..16).map(|p| record(p, &regions)).collect();
            let mut body = body(&regions, &records);
            for (at, byte) in damage {
                let at = at % body.len();
                body[at] = byte;
            }
            body.truncate(body.len() - cut % 60);
            if let Ok(records) = decode(&regions, &body, &cuts) {
                for pair in records.windows(2) {
                    prop_assert!(pair[0].page < pair[1].page);
                }
                prop_assert!(records.iter().all(|r| r.page < 16 && r.offset < 8 * 4096 + 64));
            }
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let regions = coverage(&[4, 4]);
        let all: Vec<_> = (0..8).map(|p| record(p, &regions)).collect();
        let fault = |records: &[PageRecord]| decode(&regions, &body(&regions, records), &[]).unwrap_err();
        let text = |records: &[PageRecord]| format!("{:?}", fault(records));

        assert!(text(&[all[3], all[2]]).contains("out of order"));
        assert!(text(&[all[3], all[3]]).contains("out of order"));
        assert!(text(&[PageRecord { fingerprint: None, ..all[3] }]).contains("contradicts"));
        assert!(text(&[PageRecord { fingerprint: all[3].fingerprint, ..all[2] }]).contains("contradicts"));
        assert_eq!(fault(&[PageRecord { region: 1, ..all[0] }]), Fault::Layout);
        assert_eq!(fault(&[PageRecord { region: 7, ..all[0] }]), Fault::Layout);
        assert_eq!(decode(&coverage(&[4]), &body(&regions, &all), &[]).unwrap_err(), Fault::Layout);

        let whole = body(&regions, &all);
        let short = format!("{:?}", decode(&regions, &whole[..whole.len() - 1], &[]).unwrap_err());
        assert!(short.contains("7 records of the 8"), "{short}");
        let long = [&whole[..], b"x"].concat();
        assert!(format!("{:?}", decode(&regions, &long, &[]).unwrap_err()).contains("more than"));
        assert!(decode(&regions, &whole[..20], &[]).is_err());
        assert!(decode(&regions, b"", &[]).is_err());
        assert!(decode(&regions, &[b'<'; 100], &[]).is_err());
    }
}
