//! Compression of blocks: zstd as one stream for each connection.
//!
//! Owns the zstd contexts. All blocks of a connection are one zstd stream with a window of [`WINDOW`], so that
//! what is alike in pages far apart is found; each block ends on a flush, so that it can be used as soon as it is there. How hard it tries is chosen in
//! [`super::level`].

use std::{
    io,
    time::{Duration, Instant},
};

use memdex_wire::{
    PAGE_SIZE,
    migration::Compression,
    transfer::{Codec, MAX_BLOCK_PAGES, MAX_PAYLOAD},
};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::level::{Choice, Sent};

/// The window, as a power of two: 1 MiB, and so much memory at either end of each connection. At the levels below a longer one finds nothing more in guests'
/// memory (measured: 0.2 % at level 3), and does not fit the processor's cache.
const WINDOW: u32 = 20;

/// One connection's compression.
#[derive(Default)]
pub struct Compressor {
    choice: Choice,
    encoder: Option<Encoder<'static>>,
}

/// Time that this thread has spent on a processor.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Compressor {
    /// One that does what was asked for.
    #[must_use]
    pub fn new(wanted: Compression) -> Self {
        Self { choice: Choice::new(wanted), encoder: None }
    }

    /// The level in use; 0 is none.
    #[must_use]
    pub fn level(&self) -> i32 {
        self.choice.level()
    }

    /// Appends what `pages` become to `out`, and says how it is to be read.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> io::Result<Codec> {
        if self.choice.choose() {
            // Another level is another stream.
            self.encoder = None;
        }
        let level = self.choice.level();
        if level == 0 {
            out.extend_from_slice(pages);
            return Ok(Codec::Plain);
        }
        let (begun, began) = (thread_time(), Instant::now());
        let codec = if self.encoder.is_some() { Codec::Zstd } else { Codec::NewZstd };
        if self.encoder.is_none() {
            let mut encoder = Encoder::new(level)?;
            encoder.set_parameter(CParameter::WindowLog(WINDOW))?;
            self.encoder = Some(encoder);
        }
        let encoder = self.encoder.as_mut().expect("made above");
        let first = out.len();
        // Not filled with zeros first: that would take longer than some blocks need to be compressed.
        out.reserve(MAX_PAYLOAD);
        let mut input = InBuffer::around(pages);
        let mut output = OutBuffer::around_pos(out, first);
        while input.pos() < pages.len() {
            encoder.run(&mut input, &mut output)?;
        }
        while encoder.flush(&mut output)? > 0 {}
        let length = output.pos() - first;
        self.choice.compressed(pages.len(), length, began.elapsed(), thread_time() - begun);
        Ok(codec)
    }

    /// Says what sending a block took.
    pub(super) fn sent(&mut self, sent: &Sent) {
        self.choice.sent(sent);
    }
}

/// The other end of it.
#[derive(Default)]
pub struct Decompressor {
    decoder: Option<Decoder<'static>>,
}

impl Decompressor {
    /// Fills `pages` with what `payload` was made of.
    ///
    /// # Errors
    /// If it is anything else than exactly so many bytes.
    pub fn decompress(&mut self, codec: Codec, payload: &[u8], pages: &mut [u8]) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a compressed block is damaged");
        debug_assert!(pages.len() <= MAX_BLOCK_PAGES * PAGE_SIZE);
        match codec {
            Codec::Plain => {
                if payload.len() != pages.len() {
                    return Err(damaged());
                }
                pages.copy_from_slice(payload);
                return Ok(());
            }
            Codec::NewZstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW))?;
                self.decoder = Some(decoder);
            }
            Codec::Zstd => {}
        }
        let decoder = self.decoder.as_mut().ok_or_else(damaged)?;
        let length = pages.len();
        let mut input = InBuffer::around(payload);
        let mut output = OutBuffer::around(pages);
        loop {
            let before = (input.pos(), output.pos());
            decoder.run(&mut input, &mut output).map_err(|_| damaged())?;
            if (input.pos(), output.pos()) == before {
                break;
            }
        }
        if input.pos() != payload.len() || output.pos() != length {
            return Err(damaged());
        }
        // Nothing more may be waiting inside than what was announced.
        let more: &mut [u8] = &mut [0];
        let mut output = OutBuffer::around(more);
        let _ = decoder.run(&mut InBuffer::around(&[]), &mut output);
        if output.pos() > 0 { Err(damaged()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(seed: u8, count: usize) -> Vec<u8> {
        (0..count * PAGE_SIZE).map(|i| (i as u8 ^ seed).wrapping_mul((i / 977) as u8)).collect()
    }

    #[test]
    fn a_stream_of_blocks_comes_back_whatever_the_level() {
        for choice in Choice::all() {
            let mut compressor = Compressor { choice, encoder: None };
            let mut decompressor = Decompressor::default();
            for seed in 0..20 {
                let before = pages(seed, 1 + usize::from(seed) % MAX_BLOCK_PAGES);
                let mut wire = Vec::new();
                let codec = compressor.compress(&before, &mut wire).unwrap();
                assert!(wire.len() <= MAX_PAYLOAD);
                let mut after = vec![0; before.len()];
                decompressor.decompress(codec, &wire, &mut after).unwrap();
                assert!(before == after);
            }
        }
    }

    #[test]
    fn random_pages_fit_a_payload() {
        let mut page = vec![0; MAX_BLOCK_PAGES * PAGE_SIZE];
        getrandom::fill(&mut page).unwrap();
        for choice in Choice::all().skip(1) {
            let mut compressor = Compressor { choice, encoder: None };
            let mut wire = Vec::new();
            compressor.compress(&page, &mut wire).unwrap();
            assert!(wire.len() <= MAX_PAYLOAD);
        }
    }

    #[test]
    fn a_stream_that_wants_more_memory_is_refused() {
        let mut decompressor = Decompressor::default();
        // A new decoder, and one that has been in use.
        for _ in 0..2 {
            let before = pages(1, 2);
            let mut encoder = Encoder::new(1).unwrap();
            encoder.set_parameter(CParameter::WindowLog(WINDOW + 1)).unwrap();
            let mut wire = Vec::with_capacity(MAX_PAYLOAD);
            let mut output = OutBuffer::around(&mut wire);
            encoder.run(&mut InBuffer::around(&before), &mut output).unwrap();
            while encoder.flush(&mut output).unwrap() > 0 {}
            let mut after = vec![0; before.len()];
            assert!(decompressor.decompress(Codec::NewZstd, &wire, &mut after).is_err());
            wire.clear();
            let codec = Compressor::default().compress(&before, &mut wire).unwrap();
            decompressor.decompress(codec, &wire, &mut after).unwrap();
            assert!(before == after);
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), fresh: bool) {
            let mut decompressor = Decompressor::default();
            let mut wire = Vec::new();
            let before = pages(1, 2);
            let codec = Compressor::default().compress(&before, &mut wire).unwrap();
            let mut after = vec![0; before.len()];
            decompressor.decompress(codec, &wire, &mut after).unwrap();
            let codec = if fresh { Codec::NewZstd } else { Codec::Zstd };
            let _ = decompressor.decompress(codec, &bytes, &mut after);
            // Whatever that left behind, a new stream is a new one.
            let mut wire = Vec::new();
            let codec = Compressor::default().compress(&before, &mut wire).unwrap();
            let mut after = vec![0; before.len()];
            decompressor.decompress(codec, &wire, &mut after).unwrap();
            prop_assert!(before == after);
        }

        #[test]
        fn a_block_of_another_length_is_refused(less in 1usize..2 * PAGE_SIZE) {
            let mut wire = Vec::new();
            let before = pages(1, 2);
            let codec = Compressor::default().compress(&before, &mut wire).unwrap();
            let mut after = vec![0; before.len() - less];
            prop_assert!(Decompressor::default().decompress(codec, &wire, &mut after).is_err());
        }
    }
}
