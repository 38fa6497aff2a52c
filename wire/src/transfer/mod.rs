//! What two daemons say to each other while a VM moves. All integers are little-endian.
//!
//! Two kinds of connections, all opened by the source, each an HTTP/1.1 request that was upgraded to `memdex-migration/2`:
//! one for *control* (`POST /v1/migrations/{id}/receive`), both ways, and some for *data* (`POST /v1/migrations/{id}/stream`), from source to
//! destination only. Whoever reads bounds what it takes before it allocates.
//!
//! # A frame of control
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `u32` length of the body, at most [`MAX_FRAME`] |
//! | 4 | 1 | kind |
//! | 5 | … | body |
//!
//! | kind | name | from | body |
//! |---|---|---|---|
//! | 1 | `hello` | source | JSON of at most 64 KiB, [`Hello`] |
//! | 2 | `offer` | source | `u32` batch · `u8` 1 if contents follow unasked · `u32` runs r · r × (`u32` first page · `u32` pages) · for each page its [`Name`]: 8 bytes of the fingerprint and 8 of its BLAKE3 keyed with `names` of `ready`; all zero for a page of zeros |
//! | 3 | `digest` | source | 32 bytes: [`root`] of all pages |
//! | 4 | `prepare_device` | source | – |
//! | 5 | `device` | source | a piece of the zstd stream that QEMU's device state is sent as |
//! | 6 | `device_end` | source | – |
//! | 7 | `hand_over` | source | `u8` 1 if the guest is to run, 0 if it was paused |
//! | 8 | `abort` | source | UTF-8, why |
//! | 9 | `ping` | source | – |
//! | 10 | `goodbye` | source | –: it knows how it ended |
//! | 65 | `ready` | destination | JSON of at most 64 KiB, [`Ready`] |
//! | 66 | `need` | destination | `u32` batch · n × `u16` position in the batch: send these |
//! | 67 | `done` | destination | `u32` batch: every page of it is in place, but for those withdrawn |
//! | 68 | `digest` | destination | 32 bytes: the same of what is there |
//! | 69 | `device_ready` | destination | – |
//! | 70 | `device_loaded` | destination | – |
//! | 71 | `running` | destination | – |
//! | 72 | `fail` | destination | UTF-8, why: the destination has given up |
//! | 73 | `pong` | destination | – |
//!
//! # A block of data
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `u32` batch |
//! | 4 | 2 | `u16` pages whose content follows, n, at most [`MAX_BLOCK_PAGES`] |
//! | 6 | 2 | `u16` pages that are withdrawn, w: they have changed since they were offered |
//! | 8 | 1 | codec: 0 bytes as they are, 1 zstd: continues the stream, 2 zstd: a new stream begins |
//! | 9 | 3 | zero |
//! | 12 | 4 | `u32` bytes of payload, at most [`MAX_PAYLOAD`] |
//! | 16 | 2·(n+w) | `u16` positions in the batch: first those that follow, then those withdrawn |
//! | … | | payload: n pages of 4096 bytes, as the codec says |
//!
//! No zstd stream, of pages or of device state, has a window of more than 2²⁰ bytes, and a piece of device state is at most [`MAX_DEVICE_PIECE`] bytes
//! also when it is unpacked.

mod block;
mod frame;
mod name;

use serde::{Deserialize, Serialize};

use crate::Fingerprint;

pub use block::{BLOCK_HEADER, BlockHeader, Codec, MAX_BLOCK_PAGES, MAX_PAYLOAD};
pub use frame::{FrameError, ToDestination, ToSource};
pub use name::{Name, Namer, ZERO_NAME};

/// Name of the protocol in the `Upgrade` header.
pub const PROTOCOL: &str = "memdex-migration/2";
/// Bytes before the body of a frame.
pub const FRAME_HEADER: usize = 5;
/// Largest body of a frame.
pub const MAX_FRAME: usize = 1 << 20;
/// Most pages in an offer: few enough that sending begins soon, enough that a round trip is nothing beside them.
pub const MAX_OFFER: usize = 2048;
/// Most bytes of device state in a frame.
pub const MAX_DEVICE_PIECE: usize = 256 << 10;

/// The beginning: what is going to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The VM's name at the source.
    pub name: String,
    /// Id, name or pid of the VM that waits at the destination.
    pub dest_vm: String,
    /// QMP socket of that VM, if not the one on its command line.
    #[serde(default)]
    pub dest_qmp: Option<String>,
    /// Pages in each region of guest memory, in order.
    pub regions: Vec<u64>,
    /// QEMU's ids of the memory backends behind them, if there is more than one: sizes alone do not tell which is which.
    #[serde(default)]
    pub backends: Vec<String>,
    /// Pages that hold something at the source, as far as that is known.
    pub populated: u64,
    /// Version of the source's QEMU, as `8.1.0`.
    pub qemu: String,
    /// Key id of the fingerprints, in hex: all zero for plain BLAKE3.
    pub key: String,
    /// Only look whether it would work.
    #[serde(default)]
    pub dry_run: bool,
}

/// The destination's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Id of the waiting VM on its host.
    pub vm: String,
    /// Version of its QEMU.
    pub qemu: String,
    /// Key of the names of contents, see [`Namer`].
    pub names: [u8; 32],
    /// What was looked at there. If one is not ok nothing more is said on this connection.
    pub checks: Vec<crate::migration::MigrationCheck>,
}

/// What stands for the fingerprint of a page of zeros.
pub const ZERO: Fingerprint = Fingerprint::new([0; Fingerprint::LEN]);
/// Pages whose fingerprints are digested together.
pub const DIGEST_PAGES: usize = 512;

/// Digest of some pages, at most [`DIGEST_PAGES`], by their fingerprints: [`ZERO`] for a page of zeros.
#[must_use]
pub fn chunk_digest(pages: &[Fingerprint]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("memdex 1 digest of a chunk of pages");
    for page in pages {
        hasher.update(page.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Digest of a whole VM: of the number of its pages, and of the digests of each [`DIGEST_PAGES`] of them.
#[must_use]
pub fn root<'a>(pages: u64, chunks: impl Iterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("memdex 1 digest of a guest's memory");
    hasher.update(&pages.to_le_bytes());
    for chunk in chunks {
        hasher.update(chunk);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;
