//! Frames of control: encoding and decoding. Every length is checked before anything is allocated.

use super::{FRAME_HEADER, Hello, MAX_DEVICE_PIECE, MAX_FRAME, MAX_OFFER, Name, Ready};
/// Bytes of a run of pages in an offer.
const RUN: usize = 8;
/// Longest reason that is taken.
const MAX_REASON: usize = 4096;
/// Longest greeting, or answer to one. A list in JSON takes a dozen times its length in memory, and frames wait in line.
const MAX_GREETING: usize = 64 << 10;

/// What the source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToDestination {
    /// What is going to move.
    Hello(Hello),
    /// What some pages hold now.
    Offer {
        /// Names the offer until it is done.
        batch: u32,
        /// The contents are sent without being asked for, each distinct one once.
        push: bool,
        /// Page and content; [`super::ZERO_NAME`] for a page of zeros.
        pages: Vec<(u32, Name)>,
    },
    /// The digest of all pages.
    Digest([u8; 32]),
    /// Device state is about to come.
    PrepareDevice,
    /// A piece of device state.
    Device(Vec<u8>),
    /// That was all of it.
    DeviceEnd,
    /// The destination may let the guest run; the source never will again.
    HandOver {
        /// Whether the guest ran before it was stopped for the switch-over.
        run: bool,
    },
    /// It is called off.
    Abort(String),
    /// Still there?
    Ping,
    /// The source knows how it ended; nothing more will come.
    Goodbye,
}

/// What the destination says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSource {
    /// Ready, or why not.
    Ready(Ready),
    /// Contents that are not there.
    Need {
        /// Of which offer.
        batch: u32,
        /// Positions in it.
        positions: Vec<u16>,
    },
    /// All pages of an offer are in place.
    Done {
        /// Which offer.
        batch: u32,
    },
    /// The digest of all pages.
    Digest([u8; 32]),
    /// Device state may come.
    DeviceReady,
    /// Device state is loaded; the guest stands still and could run.
    DeviceLoaded,
    /// The guest runs (or stays paused, if it was).
    Running,
    /// The destination has given up.
    Fail(String),
    /// Still here.
    Pong,
}

/// Bytes that are no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FrameError(String);

impl FrameError {
    pub(super) fn new(why: String) -> Self {
        Self(why)
    }
}

fn error<T>(why: impl Into<String>) -> Result<T, FrameError> {
    Err(FrameError(why.into()))
}

/// Splits the head of a frame into the length of its body and its kind.
///
/// # Errors
/// If the body would be longer than [`MAX_FRAME`].
pub(super) fn head(bytes: [u8; FRAME_HEADER]) -> Result<(usize, u8), FrameError> {
    let [a, b, c, d, kind] = bytes;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME {
        return error(format!("a frame of {length} bytes: at most {MAX_FRAME} are taken"));
    }
    Ok((length, kind))
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn end(mut self) -> Vec<u8> {
        let length = (self.0.len() - FRAME_HEADER) as u32;
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

fn reason(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(MAX_REASON)]).into_owned()
}

fn cut(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.len().min(MAX_REASON)]
}

fn digest(body: &[u8]) -> Result<[u8; 32], FrameError> {
    body.try_into().or_else(|_| error("a digest has 32 bytes"))
}

fn batch(body: &[u8]) -> Result<(u32, &[u8]), FrameError> {
    match body.split_first_chunk::<4>() {
        Some((batch, rest)) => Ok((u32::from_le_bytes(*batch), rest)),
        None => error("the number of a batch is missing"),
    }
}

fn greeting<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    if body.len() > MAX_GREETING {
        return error(format!("a greeting of {} bytes: at most {MAX_GREETING} are taken", body.len()));
    }
    serde_json::from_slice(body).map_err(|why| FrameError(why.to_string()))
}

fn empty<T>(body: &[u8], value: T) -> Result<T, FrameError> {
    if body.is_empty() { Ok(value) } else { error("a frame without a body has one") }
}

impl ToDestination {
    /// Splits the head of a frame into the length of its body and its kind.
    ///
    /// # Errors
    /// If the body would be longer than [`MAX_FRAME`].
    pub fn head(bytes: [u8; FRAME_HEADER]) -> Result<(usize, u8), FrameError> {
        head(bytes)
    }

    /// The whole frame.
    ///
    /// # Panics
    /// If an offer has more than [`MAX_OFFER`] pages, or a piece of device state more than [`MAX_DEVICE_PIECE`] bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => Writer::new(1).put(&serde_json::to_vec(hello).unwrap_or_default()).end(),
            Self::Offer { batch, push, pages } => {
                assert!(pages.len() <= MAX_OFFER, "split offers at MAX_OFFER");
                let mut out = Writer::new(2).put(&batch.to_le_bytes()).put(&[u8::from(*push)]);
                let runs = || pages.chunk_by(|(before, _), (page, _)| before.checked_add(1) == Some(*page));
                let count = runs().count();
                out.0.reserve(4 + count * RUN + pages.len() * Name::LEN);
                out = out.put(&(count as u32).to_le_bytes());
                for run in runs() {
                    out = out.put(&run[0].0.to_le_bytes()).put(&(run.len() as u32).to_le_bytes());
                }
                for (_, content) in pages {
                    out = out.put(content.as_bytes());
                }
                out.end()
            }
            Self::Digest(digest) => Writer::new(3).put(digest).end(),
            Self::PrepareDevice => Writer::new(4).end(),
            Self::Device(bytes) => {
                assert!(bytes.len() <= MAX_DEVICE_PIECE, "split device state at MAX_DEVICE_PIECE");
                Writer::new(5).put(bytes).end()
            }
            Self::DeviceEnd => Writer::new(6).end(),
            Self::HandOver { run } => Writer::new(7).put(&[u8::from(*run)]).end(),
            Self::Abort(why) => Writer::new(8).put(cut(why)).end(),
            Self::Ping => Writer::new(9).end(),
            Self::Goodbye => Writer::new(10).end(),
        }
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// If it is not one of this kind.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        match kind {
            1 => greeting(body).map(Self::Hello),
            2 => {
                let (batch, rest) = batch(body)?;
                let Some((&[push, a, b, c, d], rest)) = rest.split_first_chunk::<5>() else {
                    return error("an offer is cut short");
                };
                let count = u32::from_le_bytes([a, b, c, d]) as usize;
                if push > 1 || count > MAX_OFFER || rest.len() < count * RUN {
                    return error("an offer is damaged");
                }
                let (runs, names) = rest.split_at(count * RUN);
                let (names, odd) = names.as_chunks::<{ Name::LEN }>();
                if names.len() > MAX_OFFER || !odd.is_empty() {
                    return error(format!("an offer names {} pages", names.len()));
                }
                let mut pages = Vec::with_capacity(names.len());
                for run in runs.as_chunks::<RUN>().0 {
                    let [a, b, c, d, e, f, g, h] = *run;
                    let (first, length) =
                        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
                    if u64::from(first) + u64::from(length) > 1 << 32 {
                        return error("an offer has pages beyond the last number");
                    }
                    let Some(named) = names.get(pages.len()..pages.len() + length as usize) else {
                        return error("an offer has more pages than names");
                    };
                    pages.extend(
                        (0..length).map(|i| first + i).zip(named.iter().map(|name| Name::new(*name))),
                    );
                }
                if pages.len() != names.len() {
                    return error("an offer has more names than pages");
                }
                Ok(Self::Offer { batch, push: push == 1, pages })
            }
            3 => digest(body).map(Self::Digest),
            4 => empty(body, Self::PrepareDevice),
            5 if body.len() <= MAX_DEVICE_PIECE => Ok(Self::Device(body.to_vec())),
            6 => empty(body, Self::DeviceEnd),
            7 => match body {
                [run @ (0 | 1)] => Ok(Self::HandOver { run: *run == 1 }),
                _ => error("a hand-over has one byte"),
            },
            8 => Ok(Self::Abort(reason(body))),
            9 => empty(body, Self::Ping),
            10 => empty(body, Self::Goodbye),
            _ => error(format!("a source does not send frames of kind {kind}")),
        }
    }
}

impl ToSource {
    /// Splits the head of a frame into the length of its body and its kind.
    ///
    /// # Errors
    /// If the body would be longer than [`MAX_FRAME`].
    pub fn head(bytes: [u8; FRAME_HEADER]) -> Result<(usize, u8), FrameError> {
        head(bytes)
    }

    /// The whole frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready(ready) => Writer::new(65).put(&serde_json::to_vec(ready).unwrap_or_default()).end(),
            Self::Need { batch, positions } => {
                let mut out = Writer::new(66).put(&batch.to_le_bytes());
                for position in positions {
                    out = out.put(&position.to_le_bytes());
                }
                out.end()
            }
            Self::Done { batch } => Writer::new(67).put(&batch.to_le_bytes()).end(),
            Self::Digest(digest) => Writer::new(68).put(digest).end(),
            Self::DeviceReady => Writer::new(69).end(),
            Self::DeviceLoaded => Writer::new(70).end(),
            Self::Running => Writer::new(71).end(),
            Self::Fail(why) => Writer::new(72).put(cut(why)).end(),
            Self::Pong => Writer::new(73).end(),
        }
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// If it is not one of this kind.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        match kind {
            65 => greeting(body).map(Self::Ready),
            66 => {
                let (batch, rest) = batch(body)?;
                let (positions, odd) = rest.as_chunks::<2>();
                if !odd.is_empty() || positions.len() > MAX_OFFER {
                    return error("a list of positions is damaged");
                }
                let positions = positions.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
                Ok(Self::Need { batch, positions })
            }
            67 => match batch(body)? {
                (batch, []) => Ok(Self::Done { batch }),
                _ => error("a frame has more bytes than it should"),
            },
            68 => digest(body).map(Self::Digest),
            69 => empty(body, Self::DeviceReady),
            70 => empty(body, Self::DeviceLoaded),
            71 => empty(body, Self::Running),
            72 => Ok(Self::Fail(reason(body))),
            73 => empty(body, Self::Pong),
            _ => error(format!("a destination does not send frames of kind {kind}")),
        }
    }
}
