//! What a host holds, told to other hosts as it changes: `application/vnd.memdex.picture.v1`, the answer of `GET /v1/content/picture`.
//!
//! The body is a header and then frames without end. All integers are little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `MXG1` |
//! | 4 | 4 | zero |
//! | 8 | 16 | key id: all zero for plain BLAKE3 |
//!
//! A frame: `u32` kind · `u32` bytes that follow, n · n bytes.
//!
//! | kind | name | bytes |
//! |---|---|---|
//! | 0 | nothing yet: the picture is being made | nothing |
//! | 1 | [`Frame::Begin`]: a new picture; what was told before counts no more | `u64` epoch · `u64` sequence · `u64` multiplier · `u32` bits · `u32` zero · `u64` contents at most |
//! | 2 | [`Frame::Part`]: the next buckets of the picture | `u32` first bucket · `u32` number of buckets, b · b × `u16` contents in each · `u16` rest of each content, rising within a bucket |
//! | 3 | [`Frame::Complete`]: the picture shows what the host held at the sequence of its `Begin`, or later | nothing |
//! | 4 | [`Frame::Changes`]: what came and went since | `u64` epoch · `u64` sequence after these · `u64` each |
//!
//! # The picture
//!
//! A content is known by a *key*, the high `bits + 16` bits of `(p & !1) * multiplier` modulo 2⁶⁴, where p is the [prefix](crate::Fingerprint::prefix) of its fingerprint. The
//! high `bits` bits of the key are its bucket, the other 16 its *rest*. So a content costs two bytes and its share of a bucket's count, and of contents that the host lacks a few in
//! ten thousand seem to be there (as many as there are contents in a bucket, of 65,536). The multiplier is odd, random, and known to hosts alone: a guest
//! cannot choose contents that share a key or crowd a bucket.
//!
//! # Changes
//!
//! Each is the prefix of a fingerprint, its lowest bit set if the content has come and cleared if it has gone; they are to be applied in order. What has come may have been there
//! already. A frame without any says that nothing has changed: hosts send one at least every [`SIGN_OF_LIFE`]. A reader that lost the connection says
//! epoch and sequence of the last frame that it applied, and goes on from there if the host still knows what came after; else it is sent a new picture.

use std::time::Duration;

use crate::bulk::{DecodeError, KeyId};

/// The media type.
pub const PICTURE: &str = "application/vnd.memdex.picture.v1";
/// Bytes of the header.
pub const HEADER: usize = 24;
/// Bytes before the payload of a frame.
pub const FRAME_HEADER: usize = 8;
/// Largest payload of a frame.
pub const MAX_PAYLOAD: usize = 512 << 10;
/// Most changes in a frame.
pub const MAX_CHANGES: usize = 8192;
/// Most bits of a bucket's number.
pub const MAX_BITS: u32 = 28;
/// Most contents in a bucket.
pub const MAX_IN_BUCKET: usize = u16::MAX as usize;
/// Longest time between two frames.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

const BEGIN: usize = 40;
const PART_HEADER: usize = 8;
const CHANGES_HEADER: usize = 16;

/// A moment in what a host tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Other after each start of the daemon.
    pub epoch: u64,
    /// Changes told so far.
    pub sequence: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}.{}", self.epoch, self.sequence)
    }
}

/// The text is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a position is 16 hex digits, a full stop and a number")]
pub struct ParsePositionError;

impl std::str::FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, sequence) = text.split_once('.').ok_or(ParsePositionError)?;
        let digits = |text: &str, most| text.len() <= most && text.bytes().all(|c| c.is_ascii_alphanumeric());
        if epoch.len() != 16 || !digits(epoch, 16) || !digits(sequence, 20) {
            return Err(ParsePositionError);
        }
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| ParsePositionError)?;
        Ok(Self { epoch, sequence: sequence.parse().map_err(|_| ParsePositionError)? })
    }
}

/// How contents become keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    multiplier: u64,
    bits: u32,
}

impl Keys {
    /// Keys with `bits` bits for the bucket.
    ///
    /// # Errors
    /// If there are too many bits, or two contents could not be told apart by any bit.
    pub const fn new(multiplier: u64, bits: u32) -> Result<Self, DecodeError> {
        if bits == 0 || bits > MAX_BITS || multiplier & 1 == 0 {
            return Err(DecodeError::NotThis("picture"));
        }
        Ok(Self { multiplier, bits })
    }

    /// Bits of a bucket's number.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// The odd number that prefixes are multiplied with.
    #[must_use]
    pub const fn multiplier(self) -> u64 {
        self.multiplier
    }

    /// How many buckets there are.
    #[must_use]
    pub const fn buckets(self) -> u32 {
        1 << self.bits
    }

    /// The key of a content, by the prefix of its fingerprint.
    #[must_use]
    pub const fn key(self, prefix: u64) -> u64 {
        (prefix & !1).wrapping_mul(self.multiplier) >> (48 - self.bits)
    }

    /// Bucket and rest of a key.
    #[must_use]
    pub const fn split(key: u64) -> (u32, u16) {
        ((key >> 16) as u32, key as u16)
    }
}

/// A content that has come or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change(u64);

impl Change {
    /// The content with this prefix has come, or gone.
    #[must_use]
    pub const fn new(prefix: u64, come: bool) -> Self {
        Self(prefix & !1 | come as u64)
    }

    /// The prefix without its lowest bit.
    #[must_use]
    pub const fn prefix(self) -> u64 {
        self.0 & !1
    }

    /// Whether it has come.
    #[must_use]
    pub const fn come(self) -> bool {
        self.0 & 1 == 1
    }
}

/// What a host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A new picture follows.
    Begin {
        /// Changes after this apply to it.
        position: Position,
        /// How its keys are made.
        keys: Keys,
        /// Contents in it, at most.
        contents: u64,
    },
    /// The next buckets.
    Part(Part),
    /// That was all.
    Complete,
    /// What came and went, in order.
    Changes {
        /// After these.
        position: Position,
        /// The changes.
        changes: Vec<Change>,
    },
}

/// Some buckets of a picture, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The first one.
    pub first: u32,
    /// Contents in each.
    pub counts: Vec<u16>,
    /// The rest of each content, rising within a bucket.
    pub rests: Vec<u16>,
}

/// Encodes the header.
#[must_use]
pub fn encode_header(key: KeyId) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..4].copy_from_slice(b"MXG1");
    out[8..].copy_from_slice(&key.0);
    out
}

/// Decodes the header.
///
/// # Errors
/// If it is none.
pub fn decode_header(bytes: &[u8; HEADER]) -> Result<KeyId, DecodeError> {
    if &bytes[..4] != b"MXG1" {
        return Err(DecodeError::NotThis("picture"));
    }
    let mut key = KeyId::default();
    key.0.copy_from_slice(&bytes[8..]);
    Ok(key)
}

impl Frame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER]);
        let kind = match self {
            Self::Begin { position, keys, contents } => {
                for word in [position.epoch, position.sequence, keys.multiplier] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
                out.extend_from_slice(&u64::from(keys.bits).to_le_bytes());
                out.extend_from_slice(&contents.to_le_bytes());
                1_u32
            }
            Self::Part(part) => {
                out.extend_from_slice(&part.first.to_le_bytes());
                out.extend_from_slice(&(part.counts.len() as u32).to_le_bytes());
                for half in part.counts.iter().chain(&part.rests) {
                    out.extend_from_slice(&half.to_le_bytes());
                }
                2
            }
            Self::Complete => 3,
            Self::Changes { position, changes } => {
                out.extend_from_slice(&position.epoch.to_le_bytes());
                out.extend_from_slice(&position.sequence.to_le_bytes());
                for change in changes {
                    out.extend_from_slice(&change.0.to_le_bytes());
                }
                4
            }
        };
        let length = (out.len() - start - FRAME_HEADER) as u32;
        out[start..start + 4].copy_from_slice(&kind.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    }

    /// Decodes kind and length of a frame.
    ///
    /// # Errors
    /// If the frame is longer than any may be.
    pub fn decode_header(bytes: &[u8; FRAME_HEADER]) -> Result<(u32, usize), DecodeError> {
        let (kind, length) = (u32_at(bytes, 0), u32_at(bytes, 4) as usize);
        if length > MAX_PAYLOAD {
            return Err(DecodeError::TooMany { count: length as u64, limit: MAX_PAYLOAD as u64 });
        }
        Ok((kind, length))
    }

    /// Decodes the payload of a frame. `None`: nothing yet, or one of a later version; to be passed over.
    ///
    /// # Errors
    /// If it is damaged. That the parts of a picture come in order is for the reader to see.
    pub fn decode(kind: u32, payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        let damaged = DecodeError::NotThis("picture frame");
        let frame = match kind {
            1 if payload.len() == BEGIN => {
                let position = Position { epoch: u64_at(payload, 0), sequence: u64_at(payload, 8) };
                let keys = Keys::new(u64_at(payload, 16), u32_at(payload, 24))?;
                Self::Begin { position, keys, contents: u64_at(payload, 32) }
            }
            2 if payload.len() >= PART_HEADER => {
                let (header, rest) = payload.split_at(PART_HEADER);
                let (halves, odd) = rest.as_chunks::<2>();
                let buckets = u32_at(header, 4) as usize;
                if !odd.is_empty() || buckets > halves.len() {
                    return Err(damaged);
                }
                let mut counts: Vec<u16> = halves.iter().map(|half| u16::from_le_bytes(*half)).collect();
                let rests = counts.split_off(buckets);
                let part = Part { first: u32_at(header, 0), counts, rests };
                part.well_formed().then_some(Self::Part(part)).ok_or(damaged)?
            }
            3 if payload.is_empty() => Self::Complete,
            4 if payload.len() >= CHANGES_HEADER => {
                let (header, rest) = payload.split_at(CHANGES_HEADER);
                let (words, odd) = rest.as_chunks::<8>();
                if !odd.is_empty() || words.len() > MAX_CHANGES {
                    return Err(damaged);
                }
                let changes = words.iter().map(|word| Change(u64::from_le_bytes(*word))).collect();
                let position = Position { epoch: u64_at(header, 0), sequence: u64_at(header, 8) };
                Self::Changes { position, changes }
            }
            1..=4 => return Err(damaged),
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

impl Part {
    /// Whether there are as many rests as counted, rising in each bucket.
    fn well_formed(&self) -> bool {
        let mut rests = self.rests.as_slice();
        for count in &self.counts {
            let Some((bucket, others)) = rests.split_at_checked(usize::from(*count)) else { return false };
            if !bucket.is_sorted_by(|a, b| a < b) {
                return false;
            }
            rests = others;
        }
        rests.is_empty()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
