//! QEMU's device state on its way: one zstd stream, a piece of it in each frame. It is mostly names and zeros, and crosses while the guest stands still.
//!
//! Owns the two ends of that stream. What a piece becomes when it is read is handed on bit by bit, so no piece takes more memory than [`ROOM`] and
//! the stream's window, whatever it announces.

use std::io;

use memdex_wire::transfer::MAX_DEVICE_PIECE;
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// Most bytes of device state that go into a piece: it fits a frame also if it does not become smaller.
pub const MAX_READ: usize = MAX_DEVICE_PIECE - (4 << 10);
/// Bytes of device state that are handed on at a time.
const ROOM: usize = 128 << 10;
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
        Ok(Self { decoder, room: vec![0; ROOM] })
    }

    /// The next bytes of what `piece` is; `piece` is moved on over what has been read of it. Empty if there are no more in it.
    ///
    /// # Errors
    /// If it is not a piece of this stream.
    pub fn unpack(&mut self, piece: &mut &[u8]) -> io::Result<&[u8]> {
        let (mut input, mut output) = (InBuffer::around(piece), OutBuffer::around(&mut self.room[..]));
        loop {
            let before = (input.pos(), output.pos());
            self.decoder.run(&mut input, &mut output)?;
            if output.pos() > 0 || (input.pos(), output.pos()) == before {
                break;
            }
        }
        let (read, length) = (input.pos(), output.pos());
        *piece = &piece[read..];
        Ok(&self.room[..length])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
                let (mut rest, mut after) = (&piece[..], Vec::new());
                loop {
                    let bytes = unpacker.unpack(&mut rest).unwrap();
                    if bytes.is_empty() {
                        break;
                    }
                    after.extend_from_slice(bytes);
                }
                prop_assert!(rest.is_empty() && before == after);
            }
        }

        #[test]
        fn garbage_is_an_error_or_an_end_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut unpacker = Unpacker::new().unwrap();
            let mut piece = &bytes[..];
            for _ in 0..1000 {
                if unpacker.unpack(&mut piece).is_ok_and(|some| !some.is_empty()) {
                    continue;
                }
                break;
            }
        }
    }
}
