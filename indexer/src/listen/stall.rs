//! A stream that fails when its reader takes nothing, or next to nothing, for too long.
//!
//! Owns one timer a connection. Without it a client that asks for a page map and then does not read would hold the
//! snapshot, and so memory, for as long as it likes.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// What a reader has to take at least, in bytes a second, once it is behind.
const RATE: u64 = 4 << 10;

/// Wraps a stream; writes that have to wait for longer than `patience` in all fail with `TimedOut`. What gets through buys patience back, at
/// [`RATE`] and never more than there was: so a reader that takes a byte now and then ends like one that takes nothing.
pub(super) struct Stall<S> {
    stream: S,
    patience: Duration,
    /// What is left of it.
    left: Duration,
    timer: Pin<Box<Sleep>>,
    /// Since when a write waits.
    waiting: Option<Instant>,
}

impl<S> Stall<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(patience));
        Self { stream, patience, left: patience, timer, waiting: None }
    }

    /// Starts the clock when a write has to wait, stops it when one gets through. `bytes`: how much that was.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = &poll {
            if let Some(since) = self.waiting.take() {
                self.left = self.left.saturating_sub(since.elapsed());
            }
            if self.left < self.patience
                && let Ok(written) = result
            {
                let bought = Duration::from_micros(bytes(written) as u64 * 1_000_000 / RATE);
                self.left = self.left.saturating_add(bought).min(self.patience);
            }
            return poll;
        }
        if self.waiting.is_none() {
            let now = Instant::now();
            self.waiting = Some(now);
            let end = now + self.left;
            self.timer.as_mut().reset(end);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stall<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stall<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, poll, |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, poll, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, poll, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, poll, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What a slow reader takes in twenty seconds.
    const ROOM: usize = 20 * RATE as usize;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_ends_the_write_and_a_slow_one_does_not() {
        let (near, mut far) = tokio::io::duplex(ROOM);
        let mut near = Stall::new(near, Duration::from_secs(30));
        let slow = tokio::spawn(async move {
            let mut buffer = [0; ROOM];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                far.read_exact(&mut buffer).await.unwrap();
            }
            far
        });
        near.write_all(&[0; 5 * ROOM]).await.unwrap();
        let _far = slow.await.unwrap();
        let error = near.write_all(&[0; 5 * ROOM]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_a_byte_now_and_then_is_one_that_stops() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Stall::new(near, Duration::from_secs(30));
        let trickle = tokio::spawn(async move {
            while far.read_exact(&mut [0]).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        });
        let error = near.write_all(&[0; 80]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(near);
        trickle.await.unwrap();
    }
}
