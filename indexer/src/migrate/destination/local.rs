//! Pages whose content this host has already: found through the reverse index, copied, hashed, put in place.
//!
//! Owns the copying. The index is a hint and the place it names may have changed since: what counts is the hash of the copy, taken before it is written.
//! Several threads work on an offer, each on a piece of it, in gathered batches, so that every lane of the hash is used.

use memdex_wire::{
    Fingerprint, PAGE_SIZE,
    transfer::{Name, ZERO_NAME},
};

use super::session::{Failure, Session};
use crate::fingerprint::{Hasher, Page};

/// Pages of an offer that are worth a thread.
const PIECE: usize = 256;
/// Threads for one offer.
const THREADS: usize = 4;
/// Pages that are hashed together.
const GATHERED: usize = 64;

/// A page of an offer: position, page, name of the content.
pub(super) type Offered = (u16, u32, Name);

impl Session {
    /// Puts in place what is here. Returns what is not, in order. Blocking.
    pub(super) fn fill_from_here(&self, pages: &[(u32, Name)]) -> Result<Vec<Offered>, Failure> {
        let open: Vec<Offered> = {
            let ledger = self.ledger();
            let open = pages.iter().enumerate();
            let open = open.filter(|(_, (page, content))| {
                *content != ZERO_NAME && !self.namer.is(content, &ledger.get(*page))
            });
            open.map(|(position, (page, content))| (position as u16, *page, *content)).collect()
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS);
        let each = open.len().div_ceil(threads).max(PIECE);
        if open.len() <= each {
            return self.fill_piece(&open);
        }
        std::thread::scope(|scope| {
            let pieces: Vec<_> =
                open.chunks(each).map(|piece| scope.spawn(move || self.fill_piece(piece))).collect();
            let mut missing = Vec::new();
            for piece in pieces {
                missing.extend(
                    piece.join().map_err(|_| "matching what is here failed: see the log".to_owned())??,
                );
            }
            Ok(missing)
        })
    }

    fn fill_piece(&self, pages: &[Offered]) -> Result<Vec<Offered>, Failure> {
        let mut missing = Vec::new();
        let mut room = vec![0; GATHERED * PAGE_SIZE];
        let mut gathered: Vec<Offered> = Vec::with_capacity(GATHERED);
        let (mut hasher, mut digests) = (Hasher::new(), Vec::new());
        let mut rest = pages.iter();
        loop {
            gathered.clear();
            for offered in rest.by_ref() {
                let at = gathered.len() * PAGE_SIZE;
                let into: &mut Page = (&mut room[at..at + PAGE_SIZE]).try_into().expect("a page long");
                let wanted = |content: &Fingerprint| self.namer.is(&offered.2, content);
                if self.shared.read_candidate(offered.2.prefix(), wanted, into) {
                    gathered.push(*offered);
                } else {
                    missing.push(*offered);
                }
                if gathered.len() == GATHERED {
                    break;
                }
            }
            if gathered.is_empty() {
                break;
            }
            digests.clear();
            hasher.fingerprint(room[..gathered.len() * PAGE_SIZE].as_chunks().0, &mut digests);
            self.put_in_place(&gathered, &mut digests, &mut room, &mut missing)?;
        }
        missing.sort_unstable_by_key(|(position, ..)| *position);
        Ok(missing)
    }

    /// Writes the pages whose copies turned out to be what they should; the others get a second look at other places.
    fn put_in_place(
        &self,
        gathered: &[Offered],
        digests: &mut [Option<Fingerprint>],
        room: &mut [u8],
        missing: &mut Vec<Offered>,
    ) -> Result<(), Failure> {
        for (index, (offered, digest)) in gathered.iter().zip(digests.iter_mut()).enumerate() {
            if digest.is_none_or(|digest| !self.namer.is(&offered.2, &digest)) {
                let at = index * PAGE_SIZE;
                let into: &mut Page = (&mut room[at..at + PAGE_SIZE]).try_into().expect("a page long");
                *digest = self.copy_content(&offered.2, into);
            }
            if digest.is_none() {
                missing.push(*offered);
            }
        }
        let (mut from, mut put) = (0, Vec::with_capacity(gathered.len()));
        while from < gathered.len() {
            if digests[from].is_none() {
                from += 1;
                continue;
            }
            // Pages in a row are written in one go.
            let first = gathered[from].1;
            let row = (from..gathered.len())
                .take_while(|i| digests[*i].is_some() && gathered[*i].1 == first + (*i - from) as u32);
            let count = row.count();
            self.write_row(first, &room[from * PAGE_SIZE..(from + count) * PAGE_SIZE])?;
            let row = gathered[from..from + count].iter().zip(&digests[from..]);
            put.extend(row.filter_map(|((_, page, _), content)| Some((*page, (*content)?))));
            from += count;
        }
        self.put_all(&put);
        Ok(())
    }
}
