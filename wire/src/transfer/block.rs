//! Blocks of data: the fixed head of each.

use super::{FrameError, MAX_OFFER};
use crate::PAGE_SIZE;

/// Bytes of the fixed head.
pub const BLOCK_HEADER: usize = 16;
/// Most pages whose content is in a block.
pub const MAX_BLOCK_PAGES: usize = 64;
/// Most bytes of payload: what zstd makes at the worst of 64 pages is some hundred bytes more than they have.
pub const MAX_PAYLOAD: usize = MAX_BLOCK_PAGES * PAGE_SIZE + (8 << 10);

/// How a payload is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Plain,
    /// A piece of this connection's zstd stream.
    Zstd,
    /// The first piece of a new zstd stream.
    NewZstd,
}

/// The head of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Which offer.
    pub batch: u32,
    /// Pages whose content follows.
    pub pages: u16,
    /// Pages that have changed since they were offered.
    pub withdrawn: u16,
    /// How the payload is to be read.
    pub codec: Codec,
    /// Bytes of payload.
    pub payload: u32,
}

impl BlockHeader {
    /// Encodes the head.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK_HEADER] {
        let mut out = [0; BLOCK_HEADER];
        out[..4].copy_from_slice(&self.batch.to_le_bytes());
        out[4..6].copy_from_slice(&self.pages.to_le_bytes());
        out[6..8].copy_from_slice(&self.withdrawn.to_le_bytes());
        out[8] = match self.codec {
            Codec::Plain => 0,
            Codec::Zstd => 1,
            Codec::NewZstd => 2,
        };
        out[12..].copy_from_slice(&self.payload.to_le_bytes());
        out
    }

    /// Decodes a head.
    ///
    /// # Errors
    /// If it announces more than a block may have.
    pub fn decode(bytes: &[u8; BLOCK_HEADER]) -> Result<Self, FrameError> {
        let damaged = |why: &str| Err(FrameError::new(format!("a block is damaged: {why}")));
        let codec = match bytes[8] {
            0 => Codec::Plain,
            1 => Codec::Zstd,
            2 => Codec::NewZstd,
            _ => return damaged("its codec is not known"),
        };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let head =
            Self { batch: u32_at(0), pages: u16_at(4), withdrawn: u16_at(6), codec, payload: u32_at(12) };
        let (pages, payload) = (usize::from(head.pages), head.payload as usize);
        if pages > MAX_BLOCK_PAGES || usize::from(head.withdrawn) > MAX_OFFER || payload > MAX_PAYLOAD {
            return damaged("it announces more than a block may have");
        }
        if codec == Codec::Plain && payload != pages * PAGE_SIZE {
            return damaged("its payload is not as long as its pages");
        }
        Ok(head)
    }
}
