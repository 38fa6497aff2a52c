//! Bodies that are made while they are sent. Owns the hand-over from a thread that makes bytes to a connection that
//! sends them: two pieces at most wait there, whatever the size of the whole and the speed of the reader.

use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures::stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Bytes in a piece.
pub(super) const PIECE: usize = 64 << 10;
/// Pieces that wait.
const WAITING: usize = 2;
/// Longest time for a whole body: a reader that trickles on and on must not hold a snapshot for ever.
const LONGEST: Duration = Duration::from_secs(600);

/// Where the maker puts its bytes.
pub(super) struct Sink {
    buffer: Vec<u8>,
    pieces: mpsc::Sender<Result<Bytes, std::io::Error>>,
    end: Instant,
}

/// The reader is gone or was too slow: stop making.
pub(super) struct Gone;

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
        if Instant::now() > self.end {
            tracing::debug!("a client reads too slowly: its body is cut off");
            return Err(Gone);
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE + PIECE / 8));
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| Gone)
    }
}

/// A body of what `make` writes, on a thread of its own; `place` is given back when it ends. An error of `make` cuts the
/// body off, which a client sees as a broken transfer, never as a short but complete answer.
pub(super) fn body(
    place: OwnedSemaphorePermit,
    make: impl FnOnce(&mut Sink) -> Result<(), Gone> + Send + 'static,
) -> Body {
    let (pieces, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut sink =
            Sink { buffer: Vec::with_capacity(PIECE + PIECE / 8), pieces, end: Instant::now() + LONGEST };
        // A panic in `make` must not look like the end either.
        let mut guard = CutOff { pieces: sink.pieces.clone(), complete: false };
        guard.complete = make(&mut sink).and_then(|()| sink.flush()).is_ok();
        drop(place);
    });
    Body::from_stream(stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

/// Makes the body end with an error unless it is complete.
struct CutOff {
    pieces: mpsc::Sender<Result<Bytes, std::io::Error>>,
    complete: bool,
}

impl Drop for CutOff {
    fn drop(&mut self) {
        if !self.complete {
            let _ = self.pieces.blocking_send(Err(std::io::Error::other("the body could not be completed")));
        }
    }
}
