//! Bodies that are made while they are sent. Owns the hand-over from who makes bytes to a connection that sends them, and what waits between the
//! two: a few pieces at most, whatever the size of the whole and the speed of the reader.
//!
//! What comes from the daemon's own memory is made piece by piece by the task of the connection, when there is room for a piece ([`made`]): it holds
//! no thread, and a reader that stops can be made to let go of what it holds. What is read from a guest's memory, which may have to wait for a disk,
//! is made by a thread ([`read`]).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use futures::stream;
use hyper::body::{Frame, SizeHint};
use tokio::{sync::mpsc, time::timeout};

use super::gate::{Gate, Lease, Place, UNUSED};

/// Bytes in a piece: few enough to stay in a processor's cache from the making to the sending.
pub(super) const PIECE: usize = 128 << 10;
/// Pieces of a thread that wait.
const WAITING: usize = 2;
/// Longest time for a whole body: a reader that trickles on and on must not hold a snapshot for ever.
const LONGEST: Duration = Duration::from_secs(600);

/// What makes a body piece by piece. It may use the processor for some hundred microseconds, and never waits.
pub(super) trait Maker: Send + 'static {
    /// Appends what comes next, a [`PIECE`] or so, or nothing. Returns whether there is more to come.
    fn make(&mut self, out: &mut Vec<u8>) -> Result<bool, Gone>;
}

/// The body cannot be completed, or nobody reads it: stop making.
pub(super) struct Gone;

/// A body that `maker` makes; `length` is its length, if that is known. An error cuts it off, which a client sees as a broken transfer, never as a short
/// but complete answer.
pub(super) fn made(gate: &Gate, place: Place, length: Option<u64>, maker: impl Maker) -> Body {
    let begun = Instant::now();
    let work = Work { maker: Box::new(maker), buffers: Buffers::default(), _place: place };
    let lease = Arc::new(Lent { work: Mutex::new(Some(work)), begun, used: AtomicU64::new(0) });
    gate.lend(&lease);
    Body::new(Made { lease, left: length, ended: false })
}

/// Everything that a body holds while it is made.
struct Work {
    maker: Box<dyn Maker>,
    buffers: Buffers,
    _place: Place,
}

/// It may be taken back from a reader that stops.
struct Lent {
    work: Mutex<Option<Work>>,
    begun: Instant,
    /// Milliseconds from then to the last piece.
    used: AtomicU64,
}

impl Lease for Lent {
    fn unused(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.used.load(Relaxed)))
    }

    fn take_back(&self) {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        if work.is_some() {
            tracing::debug!("a client reads nothing and others wait: its body is cut off");
        }
    }
}

/// See [`made`].
struct Made {
    lease: Arc<Lent>,
    left: Option<u64>,
    ended: bool,
}

impl Made {
    /// The next piece, if it is not empty, and whether there is more to come.
    fn make(&self) -> Result<(Option<Bytes>, bool), Gone> {
        let elapsed = self.lease.begun.elapsed();
        self.lease.used.store(elapsed.as_millis() as u64, Relaxed);
        let mut work = self.lease.work.lock().unwrap_or_else(PoisonError::into_inner);
        if elapsed > LONGEST {
            tracing::debug!("a client reads too slowly: its body is cut off");
            *work = None;
        }
        let Work { maker, buffers, .. } = work.as_mut().ok_or(Gone)?;
        let mut buffer = buffers.take();
        let more = maker.make(&mut buffer)?;
        let piece = buffers.lend(buffer);
        if !more {
            *work = None;
        }
        Ok(((!piece.is_empty()).then_some(piece), more))
    }
}

impl hyper::body::Body for Made {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Ok((piece, more)) = self.make() else {
            self.ended = true;
            return Poll::Ready(Some(Err(incomplete())));
        };
        self.ended = !more;
        match piece {
            Some(piece) => {
                self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            None if more => {
                // It looks for something to send; others have their turn meanwhile.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Buffers that have been sent and are used again: fresh memory would have to be given by the system each time.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer that goes back when it has been sent.
struct Sent {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    fn take(&self) -> Vec<u8> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(PIECE + PIECE / 4))
    }

    fn lend(&self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Sent { bytes, home: self.clone() })
    }
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        // If nobody else holds the pool, the body is done.
        if Arc::strong_count(&self.home.0) > 1 {
            bytes.clear();
            self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

/// Where a thread puts its bytes.
pub(super) struct Sink {
    buffer: Vec<u8>,
    buffers: Buffers,
    pieces: mpsc::Sender<Bytes>,
    end: Instant,
    place: Place,
}

impl Sink {
    /// The buffer to append to; call [`Sink::flush_if_full`] now and then.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Hands over what is there if it makes a piece. Waits until the reader has room.
    pub(super) fn flush_if_full(&mut self) -> Result<(), Gone> {
        if self.buffer.len() < PIECE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Gone> {
        let fresh = self.buffers.take();
        let piece = self.buffers.lend(std::mem::replace(&mut self.buffer, fresh));
        let mut piece = match self.pieces.try_send(piece) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Gone),
            Err(mpsc::error::TrySendError::Full(piece)) => Some(piece),
        };
        let runtime = tokio::runtime::Handle::current();
        while let Some(waits) = piece.take() {
            match runtime.block_on(async { timeout(UNUSED, self.pieces.reserve()).await }) {
                Ok(Ok(room)) => room.send(waits),
                Ok(Err(_)) => return Err(Gone),
                Err(_) if self.place.wanted() || Instant::now() > self.end => {
                    tracing::debug!("a client reads too slowly: its body is cut off");
                    return Err(Gone);
                }
                Err(_) => piece = Some(waits),
            }
        }
        Ok(())
    }
}

/// A body of what `make` writes, on a thread of its own. An error of `make` cuts it off, as with [`made`].
pub(super) fn read(place: Place, make: impl FnOnce(&mut Sink) -> Result<(), Gone> + Send + 'static) -> Body {
    let (pieces, receiver) = mpsc::channel(WAITING);
    let complete = Arc::new(AtomicBool::new(false));
    let completed = Arc::clone(&complete);
    tokio::task::spawn_blocking(move || {
        let buffers = Buffers::default();
        let mut sink = Sink { buffer: buffers.take(), buffers, pieces, end: Instant::now() + LONGEST, place };
        if make(&mut sink).and_then(|()| sink.flush()).is_ok() {
            completed.store(true, Release);
        }
        // Only now the channel ends. A panic in `make` ends it too, and does not look like the end of the body.
    });
    Body::from_stream(stream::unfold(Some((receiver, complete)), |state| async {
        let (mut receiver, complete) = state?;
        match receiver.recv().await {
            Some(piece) => Some((Ok(piece), Some((receiver, complete)))),
            None if complete.load(Acquire) => None,
            None => Some((Err(incomplete()), None)),
        }
    }))
}

fn incomplete() -> io::Error {
    io::Error::other("the body could not be completed")
}
