//! Binary media types for bulk, byte by byte. All integers are little-endian.
//!
//! A reader bounds what it takes *before* it allocates: every decoder here is given the largest count it may accept.
//!
//! # `application/vnd.memdex.fingerprints.v1` — body of `POST /v1/content/lookup`
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `MXF1` |
//! | 4 | 4 | `u32` number of fingerprints, n |
//! | 8 | 16 | key id: all zero for plain BLAKE3 |
//! | 24 | 32·n | the fingerprints |
//!
//! # `application/vnd.memdex.bitmap.v1` — its answer
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `MXB1` |
//! | 4 | 4 | `u32` number of fingerprints asked for, n |
//! | 8 | … | Roaring bitmap, portable format: position i is set if the host holds the i-th content |
//!
//! # `application/vnd.memdex.pages.v1` — `GET /v1/vms/{vm}/pages`
//!
//! A header, then records until the end of the body, in page order.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `MXP1` |
//! | 4 | 4 | page size, 4096 |
//! | 8 | 8 | generation of the snapshot |
//! | 16 | 8 | pages in the VM |
//! | 24 | 8 | number of records that follow, r |
//! | 32 | 56·r | records |
//!
//! A record: `u64` page · `u64` generation of its content · `u8` state (0 stale, 1 absent, 2 zero, 3 current) ·
//! `u8` 1 if the fingerprint is known · `u16` zero · `u32` region · 32 bytes fingerprint (zero if not known).
//!
//! # `application/vnd.memdex.contents.v1` — answer of `POST /v1/content/pages`, asked with a list of fingerprints
//!
//! A header, then one record for each content that could be read, in the order asked for, until the end of the body.
//! A content that is missing was not held, or changed before it could be copied.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `MXC1` |
//! | 4 | 4 | `u32` number of fingerprints asked for, n |
//! | 8 | 4100·… | records: `u32` position in the list, less than n and rising · the 4096 bytes |
//!
//! The receiver hashes every page again before it uses it.

use std::io;

use roaring::RoaringBitmap;

use crate::{
    Fingerprint,
    page::{PageRecord, PageState},
};

/// Media type of a list of fingerprints.
pub const FINGERPRINTS: &str = "application/vnd.memdex.fingerprints.v1";
/// Media type of a lookup's answer.
pub const BITMAP: &str = "application/vnd.memdex.bitmap.v1";
/// Media type of a page map.
pub const PAGES: &str = "application/vnd.memdex.pages.v1";

/// Media type of contents of pages.
pub const CONTENTS: &str = "application/vnd.memdex.contents.v1";

/// Most contents asked for at once: 4 MiB of them.
pub const MAX_CONTENTS: usize = 1024;
/// Largest body that asks for contents.
pub const MAX_CONTENTS_REQUEST_BYTES: usize = LIST_HEADER + MAX_CONTENTS * Fingerprint::LEN;
/// Bytes of the header of contents.
pub const CONTENTS_HEADER: usize = 8;
/// Bytes before the page in a record of contents.
pub const CONTENT_HEAD: usize = 4;
/// Bytes of one record of contents.
pub const CONTENT_RECORD: usize = CONTENT_HEAD + crate::PAGE_SIZE;

/// Most fingerprints in one lookup: 2 MiB of them.
pub const MAX_LOOKUP: usize = 65_536;
/// Largest body of a lookup.
pub const MAX_LOOKUP_BYTES: usize = LIST_HEADER + MAX_LOOKUP * Fingerprint::LEN;
/// Largest answer to a lookup: a Roaring bitmap of 65,536 positions is at most 8 KiB and some headers.
pub const MAX_BITMAP_BYTES: usize = 16 * 1024;
/// Bytes of the header of a page map.
pub const PAGES_HEADER: usize = 32;
/// Bytes of one record of a page map.
pub const PAGE_RECORD: usize = 56;

/// Bytes of the header of a list of fingerprints.
pub const LIST_HEADER: usize = 24;

/// Which key fingerprints were made with. Unequal keys never match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    /// Plain BLAKE3, no key.
    pub const PLAIN: Self = Self([0; 16]);
}

/// Why bytes are not the message they claim to be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The magic number or a fixed field is wrong.
    #[error("not a {0} body")]
    NotThis(&'static str),
    /// The length does not fit the count in the header.
    #[error("the body has {actual} bytes, its header announces {expected}")]
    Length {
        /// Bytes the header announces.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// More entries than the reader is ready to take.
    #[error("{count} entries, at most {limit} are taken at once")]
    TooMany {
        /// Entries announced.
        count: u64,
        /// Entries taken.
        limit: u64,
    },
    /// The bitmap cannot be read, or names positions that were not asked for.
    #[error("the bitmap is damaged")]
    Bitmap,
}

/// Encodes the body of a lookup.
///
/// # Panics
/// If there are more than [`MAX_LOOKUP`] fingerprints: split first.
#[must_use]
pub fn encode_fingerprints(key: KeyId, fingerprints: &[Fingerprint]) -> Vec<u8> {
    assert!(fingerprints.len() <= MAX_LOOKUP, "split lookups at MAX_LOOKUP");
    let mut out = Vec::with_capacity(LIST_HEADER + fingerprints.len() * Fingerprint::LEN);
    out.extend_from_slice(b"MXF1");
    out.extend_from_slice(&(fingerprints.len() as u32).to_le_bytes());
    out.extend_from_slice(&key.0);
    for fingerprint in fingerprints {
        out.extend_from_slice(fingerprint.as_bytes());
    }
    out
}

/// Decodes the body of a lookup.
///
/// # Errors
/// If the body is not a list of at most [`MAX_LOOKUP`] fingerprints.
pub fn decode_fingerprints(body: &[u8]) -> Result<(KeyId, Vec<Fingerprint>), DecodeError> {
    let (header, rest) =
        body.split_first_chunk::<LIST_HEADER>().ok_or(DecodeError::NotThis("fingerprint list"))?;
    let list = FingerprintsHeader::decode(header)?;
    list.check_length(body.len() as u64)?;
    let fingerprints =
        rest.as_chunks::<{ Fingerprint::LEN }>().0.iter().map(|b| Fingerprint::new(*b)).collect();
    Ok((list.key, fingerprints))
}

/// Header of the body of a lookup, for whoever takes the list as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FingerprintsHeader {
    /// Key of the fingerprints.
    pub key: KeyId,
    /// Fingerprints that follow, at most [`MAX_LOOKUP`].
    pub count: u32,
}

impl FingerprintsHeader {
    /// Decodes a header.
    ///
    /// # Errors
    /// If it is not that of a list of at most [`MAX_LOOKUP`] fingerprints.
    pub fn decode(header: &[u8; LIST_HEADER]) -> Result<Self, DecodeError> {
        if &header[..4] != b"MXF1" {
            return Err(DecodeError::NotThis("fingerprint list"));
        }
        let count = u32_at(header, 4);
        if count as usize > MAX_LOOKUP {
            return Err(DecodeError::TooMany { count: u64::from(count), limit: MAX_LOOKUP as u64 });
        }
        let mut key = KeyId::default();
        key.0.copy_from_slice(&header[8..24]);
        Ok(Self { key, count })
    }

    /// Checks the length of the whole body against the count.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn check_length(&self, body: u64) -> Result<(), DecodeError> {
        let expected = (LIST_HEADER + self.count as usize * Fingerprint::LEN) as u64;
        if body == expected { Ok(()) } else { Err(DecodeError::Length { expected, actual: body }) }
    }
}

/// Encodes the answer to a lookup of `asked` fingerprints.
#[must_use]
pub fn encode_bitmap(asked: u32, held: &RoaringBitmap) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + held.serialized_size());
    out.extend_from_slice(b"MXB1");
    out.extend_from_slice(&asked.to_le_bytes());
    held.serialize_into(&mut out).expect("writing to a Vec does not fail");
    out
}

/// Decodes the answer to a lookup of `asked` fingerprints.
///
/// # Errors
/// If the body is damaged or answers another question.
pub fn decode_bitmap(asked: u32, body: &[u8]) -> Result<RoaringBitmap, DecodeError> {
    let (header, rest) = body.split_at_checked(8).ok_or(DecodeError::NotThis("bitmap"))?;
    if &header[..4] != b"MXB1" {
        return Err(DecodeError::NotThis("bitmap"));
    }
    if u32_at(header, 4) != asked {
        return Err(DecodeError::Bitmap);
    }
    let mut reader = io::Cursor::new(rest);
    let held = RoaringBitmap::deserialize_from(&mut reader).map_err(|_| DecodeError::Bitmap)?;
    if reader.position() != rest.len() as u64 || held.max().is_some_and(|last| last >= asked) {
        return Err(DecodeError::Bitmap);
    }
    Ok(held)
}

/// Header of a page map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagesHeader {
    /// Generation of the snapshot.
    pub generation: u64,
    /// Pages in the VM.
    pub pages: u64,
    /// Records that follow.
    pub records: u64,
}

impl PagesHeader {
    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGES_HEADER] {
        let mut out = [0; PAGES_HEADER];
        out[..4].copy_from_slice(b"MXP1");
        out[4..8].copy_from_slice(&(crate::PAGE_SIZE as u32).to_le_bytes());
        out[8..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.pages.to_le_bytes());
        out[24..32].copy_from_slice(&self.records.to_le_bytes());
        out
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// If it is not the header of a page map with at most `limit` pages.
    pub fn decode(bytes: &[u8; PAGES_HEADER], limit: u64) -> Result<Self, DecodeError> {
        if &bytes[..4] != b"MXP1" || u32_at(bytes, 4) as usize != crate::PAGE_SIZE {
            return Err(DecodeError::NotThis("page map"));
        }
        let header =
            Self { generation: u64_at(bytes, 8), pages: u64_at(bytes, 16), records: u64_at(bytes, 24) };
        let most = header.pages.max(header.records);
        if most > limit {
            return Err(DecodeError::TooMany { count: most, limit });
        }
        Ok(header)
    }
}

/// Appends one record of a page map. Its `offset` is not sent: the coverage list gives each region's first page and
/// that one's offset.
pub fn encode_page(record: &PageRecord, out: &mut Vec<u8>) {
    let mut bytes = [0; PAGE_RECORD];
    // One piece, put together in registers: a map has hundreds of millions of these.
    bytes[..8].copy_from_slice(&record.page.to_le_bytes());
    bytes[8..16].copy_from_slice(&record.generation.to_le_bytes());
    bytes[16] = record.state as u8;
    bytes[20..24].copy_from_slice(&record.region.to_le_bytes());
    if let Some(fingerprint) = &record.fingerprint {
        bytes[17] = 1;
        bytes[24..].copy_from_slice(fingerprint.as_bytes());
    }
    out.extend_from_slice(&bytes);
}

/// Decodes one record of a page map; `offset` is left 0.
///
/// # Errors
/// If the state is none that is known.
pub fn decode_page(bytes: &[u8; PAGE_RECORD]) -> Result<PageRecord, DecodeError> {
    let state = match bytes[16] {
        0 => PageState::Stale,
        1 => PageState::Absent,
        2 => PageState::Zero,
        3 => PageState::Current,
        _ => return Err(DecodeError::NotThis("page record")),
    };
    let mut fingerprint = [0; Fingerprint::LEN];
    fingerprint.copy_from_slice(&bytes[24..56]);
    Ok(PageRecord {
        page: u64_at(bytes, 0),
        region: u32_at(bytes, 20),
        offset: 0,
        state,
        fingerprint: (bytes[17] == 1).then_some(Fingerprint::new(fingerprint)),
        generation: u64_at(bytes, 8),
    })
}

/// Encodes the header of the contents of some of `asked` fingerprints.
#[must_use]
pub fn encode_contents_header(asked: u32) -> [u8; CONTENTS_HEADER] {
    let mut out = *b"MXC1\0\0\0\0";
    out[4..].copy_from_slice(&asked.to_le_bytes());
    out
}

/// Checks the header of the contents of some of `asked` fingerprints.
///
/// # Errors
/// If it is no such header, or answers another question.
pub fn check_contents_header(asked: u32, bytes: &[u8; CONTENTS_HEADER]) -> Result<(), DecodeError> {
    if *bytes == encode_contents_header(asked) { Ok(()) } else { Err(DecodeError::NotThis("contents")) }
}

/// Appends one record of contents.
pub fn encode_content(position: u32, page: &[u8; crate::PAGE_SIZE], out: &mut Vec<u8>) {
    out.extend_from_slice(&encode_content_head(position));
    out.extend_from_slice(page);
}

/// What stands before the page in a record of contents.
#[must_use]
pub const fn encode_content_head(position: u32) -> [u8; CONTENT_HEAD] {
    position.to_le_bytes()
}

/// Splits one record of contents into position and page. `next` is the smallest position that may follow: 0 at first,
/// then one more than the last.
///
/// # Errors
/// If the position was not asked for, or is out of order.
pub fn decode_content(
    asked: u32,
    next: u32,
    record: &[u8; CONTENT_RECORD],
) -> Result<(u32, &[u8; crate::PAGE_SIZE]), DecodeError> {
    let (position, page) = record.split_first_chunk::<4>().expect("longer than four bytes");
    let position = u32::from_le_bytes(*position);
    let page = page.try_into().map_err(|_| DecodeError::NotThis("content record"))?;
    if (next..asked).contains(&position) {
        Ok((position, page))
    } else {
        Err(DecodeError::NotThis("content record"))
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
