//! A data connection at the destination: reads blocks, hashes every page of them, hands them to the session.
//!
//! Owns the buffers of one connection. What a block announces is checked before anything is read on its word, and a page whose hash is not the
//! fingerprint it was offered with ends the migration: nothing of it is written.

use std::sync::Arc;

use memdex_wire::{
    Fingerprint, PAGE_SIZE,
    transfer::{BLOCK_HEADER, BlockHeader, MAX_BLOCK_PAGES, MAX_PAYLOAD},
};
use tokio::{
    io::{AsyncReadExt, BufReader},
    runtime::Handle,
};

use super::{
    offers::Pages,
    session::{Failure, Session},
};
use crate::{
    fingerprint::Hasher,
    migrate::{codec::Decompressor, link::Counted},
};

/// Reads a data connection to its end. Blocking: it has a thread of its own.
pub(super) fn receive(session: &Arc<Session>, io: Counted, runtime: &Handle) {
    let mut stream = Stream {
        session: Arc::clone(session),
        io: BufReader::with_capacity(64 << 10, io),
        runtime: runtime.clone(),
        decompressor: Decompressor::default(),
        hasher: Hasher::new(),
        payload: Vec::new(),
        pages: Vec::new(),
    };
    loop {
        match stream.block() {
            Ok(true) => {}
            Ok(false) => return,
            Err(why) => {
                if !session.stop.is_cancelled() {
                    session.fail(why);
                }
                return;
            }
        }
    }
}

struct Stream {
    session: Arc<Session>,
    io: BufReader<Counted>,
    runtime: Handle,
    decompressor: Decompressor,
    hasher: Hasher,
    payload: Vec<u8>,
    pages: Vec<u8>,
}

impl Stream {
    /// Takes in one block; false at the end of the connection.
    fn block(&mut self) -> Result<bool, Failure> {
        let mut head = [0; BLOCK_HEADER];
        // Between blocks there may be any pause: the control connection says whether the source lives.
        if !self.read_head(&mut head)? {
            return Ok(false);
        }
        let head = BlockHeader::decode(&head).map_err(|error| error.to_string())?;
        let (count, withdrawn) = (usize::from(head.pages), usize::from(head.withdrawn));
        debug_assert!(count <= MAX_BLOCK_PAGES && head.payload as usize <= MAX_PAYLOAD);
        let mut positions = vec![0; (count + withdrawn) * 2];
        self.read(&mut positions)?;
        let positions: Vec<u16> =
            positions.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(head.payload as usize, 0);
        self.read(&mut payload)?;
        self.pages.resize(count * PAGE_SIZE, 0);
        self.decompressor
            .decompress(head.codec, &payload, &mut self.pages)
            .map_err(|error| format!("the source sends damaged pages: {error}"))?;
        self.payload = payload;
        let (with, without) = positions.split_at(count);
        if count > 0 {
            let offered = self.session.pages_of(head.batch)?;
            let contents = self.check(&offered, with)?;
            self.session.arrived(head.batch, &offered, with, &contents, &self.pages)?;
        }
        without.iter().try_for_each(|position| self.session.withdrawn(head.batch, *position))?;
        Ok(true)
    }

    /// Hashes what has come, and compares with what was offered.
    fn check(&mut self, offered: &Pages, positions: &[u16]) -> Result<Vec<Fingerprint>, Failure> {
        let mut digests: Vec<Option<Fingerprint>> = Vec::with_capacity(positions.len());
        self.hasher.fingerprint(self.pages.as_chunks().0, &mut digests);
        let check = |(position, digest): (&u16, Option<Fingerprint>)| {
            let Some((page, name)) = offered.get(usize::from(*position)) else {
                return Err("the source sends a page that it has not offered".to_owned());
            };
            digest.filter(|digest| self.session.namer.is(name, digest)).ok_or_else(|| {
                format!(
                    "the source sent bytes for page {page} that do not have the fingerprint it named: nothing of them is used"
                )
            })
        };
        positions.iter().zip(digests).map(check).collect()
    }

    fn read_head(&mut self, head: &mut [u8]) -> Result<bool, Failure> {
        let (io, stop) = (&mut self.io, &self.session.stop);
        let first = self.runtime.block_on(async {
            tokio::select! {
                read = io.read(&mut head[..1]) => read,
                () = stop.cancelled() => Ok(0),
            }
        });
        match first {
            Ok(0) => Ok(false),
            Ok(_) => self.read(&mut head[1..]).map(|()| true),
            Err(error) => Err(format!("a data connection failed: {error}")),
        }
    }

    /// The rest of something that has begun has to come soon.
    fn read(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        let (io, stop) = (&mut self.io, &self.session.stop);
        let read = self.runtime.block_on(async {
            tokio::select! {
                read = tokio::time::timeout(crate::migrate::link::SILENCE, io.read_exact(buffer)) => read,
                () = stop.cancelled() => Ok(Err(std::io::ErrorKind::Interrupted.into())),
            }
        });
        match read {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("a data connection ended in the midst of a block: {error}")),
            Err(_) => Err("a data connection stalled in the midst of a block".to_owned()),
        }
    }
}
