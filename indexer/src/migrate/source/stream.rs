//! A data connection at the source: reads pages, hashes them again, compresses, sends.
//!
//! Owns the buffers of one connection. A page that no longer has the content it was offered with is not sent but withdrawn: it has been written since, its
//! mark is there or on its way, and a later round tells of it.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use memdex_wire::{
    Fingerprint, PAGE_SIZE,
    migration::Compression,
    transfer::{BlockHeader, Codec, MAX_BLOCK_PAGES},
};
use tokio::{
    io::AsyncWriteExt,
    runtime::Handle,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::STREAMS;
use crate::{
    fingerprint::Hasher,
    host::Vm,
    migrate::{
        codec::Compressor,
        level::Sent,
        link::{Counted, SILENCE},
        pace::Pace,
    },
};

/// Pages of one offer that are to be sent, at most [`MAX_BLOCK_PAGES`].
pub(super) struct Job {
    pub(super) batch: u32,
    pub(super) offered: Arc<Vec<(u32, Fingerprint)>>,
    pub(super) positions: Vec<u16>,
}

/// What the connections of one migration share.
pub(super) struct Streams {
    pub(super) vm: Arc<Vm>,
    pub(super) pace: Arc<Pace>,
    pub(super) compression: Compression,
    pub(super) jobs: Mutex<mpsc::UnboundedReceiver<Job>>,
    /// Pages that had changed when their turn came, by offer and position.
    pub(super) withdrawn: Mutex<HashSet<(u32, u16)>>,
    /// Bytes written, and nanoseconds that all connections together took for it: what the link takes.
    pub(super) written: (AtomicU64, AtomicU64),
    /// Bytes of memory that the round at hand may still have to send.
    pub(super) left: AtomicU64,
    /// The level in use, for the progress.
    pub(super) level: AtomicU8,
    pub(super) failure: Mutex<Option<String>>,
    /// One of them has failed, or all are to end.
    pub(super) stop: CancellationToken,
}

/// Bytes written from which on the rate of the link can be told.
const ENOUGH: u64 = 256 << 10;

impl Streams {
    /// Bytes a second that the link takes, if enough was written to tell.
    pub(super) fn rate(&self) -> Option<f64> {
        let (bytes, nanos) = (self.written.0.load(Relaxed), self.written.1.load(Relaxed));
        (bytes >= ENOUGH).then(|| STREAMS as f64 * bytes as f64 * 1e9 / nanos.max(1) as f64)
    }

    /// Works on jobs until there are no more. Blocking: it has a thread of its own.
    pub(super) fn send(&self, io: Counted, runtime: &Handle) {
        let mut sender = Sender {
            streams: self,
            io,
            runtime,
            compressor: Compressor::new(self.compression),
            hasher: Hasher::new(),
            pages: Vec::new(),
            block: Vec::new(),
        };
        loop {
            // Whoever holds the lock waits for all.
            let next = {
                let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                runtime.block_on(async {
                    tokio::select! {
                        job = jobs.recv() => job,
                        () = self.stop.cancelled() => None,
                    }
                })
            };
            let Some(job) = next else {
                let _ = runtime.block_on(sender.io.shutdown());
                return;
            };
            if let Err(why) = sender.job(&job) {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
                self.stop.cancel();
                return;
            }
        }
    }
}

struct Sender<'a> {
    streams: &'a Streams,
    io: Counted,
    runtime: &'a Handle,
    compressor: Compressor,
    hasher: Hasher,
    pages: Vec<u8>,
    block: Vec<u8>,
}

impl Sender<'_> {
    fn job(&mut self, job: &Job) -> Result<(), String> {
        let begun = Instant::now();
        let (with, without) = self.read(job)?;
        // Before the destination can hear of it and call the offer done.
        self.streams
            .withdrawn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(without.iter().map(|position| (job.batch, *position)));
        self.block.clear();
        let mut head = BlockHeader {
            batch: job.batch,
            pages: with.len() as u16,
            withdrawn: without.len() as u16,
            codec: Codec::Plain,
            payload: 0,
        };
        self.block.extend_from_slice(&head.encode());
        with.iter()
            .chain(&without)
            .for_each(|position| self.block.extend_from_slice(&position.to_le_bytes()));
        let payload = self.block.len();
        if !with.is_empty() {
            let codec = self.compressor.compress(&self.pages, &mut self.block);
            head.codec = codec.map_err(|error| format!("pages cannot be compressed: {error}"))?;
        }
        head.payload = (self.block.len() - payload) as u32;
        let encoded = head.encode();
        self.block[..encoded.len()].copy_from_slice(&encoded);
        self.streams.level.store(self.compressor.level().unsigned_abs() as u8, Relaxed);
        let took = self.write()?;
        if !with.is_empty() {
            let least = self.streams.pace.rate().map_or(0.0, |rate| STREAMS as f64 / rate.max(1) as f64);
            let left = self.streams.left.load(Relaxed) / STREAMS as u64;
            self.compressor.sent(&Sent {
                memory: self.pages.len(),
                wire: self.block.len(),
                link: took,
                whole: begun.elapsed(),
                least,
                left,
            });
            self.streams.written.0.fetch_add(self.block.len() as u64, Relaxed);
            self.streams.written.1.fetch_add(took.as_nanos() as u64, Relaxed);
        }
        Ok(())
    }

    /// Reads the pages of a job into `pages`. Returns the positions that are as they were offered, and those that are not.
    fn read(&mut self, job: &Job) -> Result<(Vec<u16>, Vec<u16>), String> {
        debug_assert!(job.positions.len() <= MAX_BLOCK_PAGES);
        self.pages.resize(job.positions.len() * PAGE_SIZE, 0);
        let page = |position: u16| job.offered[usize::from(position)].0;
        let mut from = 0;
        while from < job.positions.len() {
            // Pages in a row are read in one go.
            let first = page(job.positions[from]);
            let row = job.positions[from..].iter().enumerate();
            let count = row.take_while(|(i, position)| page(**position) == first + *i as u32).count();
            let bytes = &mut self.pages[from * PAGE_SIZE..(from + count) * PAGE_SIZE];
            if self.streams.vm.read_run(first..first + count as u32, bytes).is_none() {
                // Across the end of a region, or something is wrong with it: page by page tells.
                for (number, bytes) in (first..).zip(bytes.chunks_mut(PAGE_SIZE)) {
                    let read = self.streams.vm.read_run(number..number + 1, bytes);
                    read.ok_or_else(|| format!("page {number} of the VM can no longer be read"))?;
                }
            }
            from += count;
        }
        let mut digests = Vec::with_capacity(job.positions.len());
        self.hasher.fingerprint(self.pages.as_chunks().0, &mut digests);
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for (index, (position, digest)) in job.positions.iter().zip(digests).enumerate() {
            if digest == Some(job.offered[usize::from(*position)].1) {
                let to = with.len() * PAGE_SIZE;
                if without.is_empty() {
                    debug_assert_eq!(to, index * PAGE_SIZE, "it stands where it belongs");
                } else {
                    self.pages.copy_within(index * PAGE_SIZE..(index + 1) * PAGE_SIZE, to);
                }
                with.push(*position);
            } else {
                without.push(*position);
            }
        }
        self.pages.truncate(with.len() * PAGE_SIZE);
        Ok((with, without))
    }

    /// Sends the block when its time has come. Returns how long the link took for it.
    fn write(&mut self) -> Result<Duration, String> {
        let (io, block, stop) = (&mut self.io, &self.block, &self.streams.stop);
        let wait = self.streams.pace.take(block.len());
        let write = async {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let begun = Instant::now();
            // A slow link is none that stands still: each part has its own time.
            let mut rest = &block[..];
            while !rest.is_empty() {
                let taken = match timeout(SILENCE, io.write(rest)).await {
                    Ok(Ok(0)) => Err(std::io::Error::from(std::io::ErrorKind::WriteZero)),
                    Ok(taken) => taken,
                    Err(late) => return Err(late),
                };
                match taken {
                    Ok(bytes) => rest = &rest[bytes..],
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(timeout(SILENCE, io.flush()).await?.map(|()| begun.elapsed()))
        };
        let written = self.runtime.block_on(async {
            tokio::select! {
                written = write => Some(written),
                () = stop.cancelled() => None,
            }
        });
        match written {
            None => Err("it was called off".to_owned()),
            Some(Err(_)) => {
                Err(format!("the destination has taken nothing for {} seconds", SILENCE.as_secs()))
            }
            Some(Ok(Err(error))) => Err(format!("a data connection failed: {error}")),
            Some(Ok(Ok(took))) => Ok(took),
        }
    }
}
