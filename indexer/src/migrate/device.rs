//! QEMU's device state on its way: one zstd stream, a piece of it in each frame. It is mostly names and zeros, and crosses while the guest stands still.
//!
//! Owns the two ends of that stream. A piece that would become more than [`MAX_DEVICE_PIECE`] bytes is refused before any of it is used.

use std::io;

use memdex_wire::transfer::MAX_DEVICE_PIECE;
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// Most bytes of device state that go into a piece: it fits a frame also if it does not become smaller.
pub const MAX_READ: usize = MAX_DEVICE_PIECE - (4 << 10);
/// The window, as a power of two.
const WINDOW: u32 = 20;

/// The source's end.
pub struct Packer(Encoder<'static>);

impl Packer {
    /// A stream of its own.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub fn new() -> io::Result<Self> {
        let mut encoder = Encoder::new(1)?;
        encoder.set_parameter(CParameter::WindowLog(WINDOW))?;
        Ok(Self(encoder))
    }

    /// What `bytes`, at most [`MAX_READ`], are sent as. All of it can be read there at once.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub fn pack(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut piece = Vec::with_capacity(MAX_DEVICE_PIECE);
        let (mut input, mut output) = (InBuffer::around(bytes), OutBuffer::around(&mut piece));
        while input.pos() < bytes.len() {
            self.0.run(&mut input, &mut output)?;
        }
        while self.0.flush(&mut output)? > 0 {}
        Ok(piece)
    }
}

/// The destination's end.
pub struct Unpacker {
    decoder: Decoder<'static>,
    room: Vec<u8>,
}

impl Unpacker {
    /// A stream of its own.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW))?;
        Ok(Self { decoder, room: vec![0; MAX_DEVICE_PIECE + 1] })
    }

    /// What `piece` is.
    ///
    /// # Errors
    /// If it is not a piece of this stream, or more than [`MAX_DEVICE_PIECE`] bytes.
    pub fn unpack(&mut self, piece: &[u8]) -> io::Result<&[u8]> {
        let (mut input, mut output) = (InBuffer::around(piece), OutBuffer::around(&mut self.room[..]));
        loop {
            let before = (input.pos(), output.pos());
            self.decoder.run(&mut input, &mut output)?;
            if (input.pos(), output.pos()) == before {
                break;
            }
        }
        let length = output.pos();
        if input.pos() < piece.len() || length > MAX_DEVICE_PIECE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a piece is longer than it may be"));
        }
        Ok(&self.room[..length])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_that_bursts_is_refused() {
        // A frame of zstd, with blocks of four bytes that stand for 128 KiB each.
        let bursting = |blocks: usize| {
            let head = [0x28, 0xb5, 0x2f, 0xfd, 0, 10 << 3];
            let block = ((128_u32 << 10) << 3 | 1 << 1).to_le_bytes();
            head.into_iter().chain([block[0], block[1], block[2], 7].repeat(blocks)).collect::<Vec<_>>()
        };
        assert_eq!(Unpacker::new().unwrap().unpack(&bursting(1)).unwrap(), vec![7; 128 << 10]);
        for blocks in [3, 1000] {
            assert!(Unpacker::new().unwrap().unpack(&bursting(blocks)).is_err());
        }
    }

    proptest! {
        #[test]
        fn it_comes_out_piece_by_piece_as_it_went_in(
            pieces in prop::collection::vec((0usize..=MAX_READ, any::<u8>(), any::<bool>()), 1..6)
        ) {
            let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new().unwrap());
            for (length, seed, random) in pieces {
                let mut before = vec![seed; length];
                if random {
                    getrandom::fill(&mut before).unwrap();
                }
                let piece = packer.pack(&before).unwrap();
                prop_assert!(piece.len() <= MAX_DEVICE_PIECE);
                prop_assert!(before == unpacker.unpack(&piece).unwrap());
            }
        }

        #[test]
        fn garbage_is_an_error_or_an_end_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Unpacker::new().unwrap().unpack(&bytes);
        }
    }
}
