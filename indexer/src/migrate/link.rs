//! The two kinds of connections between two daemons, framed and bounded in time.
//!
//! Owns reading and writing whole frames, counting every byte, and noticing that nobody is there any more. Never knows what a frame means.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use memdex_wire::transfer::{FRAME_HEADER, FrameError, ToDestination, ToSource};
use migrate_client::Channel;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// A peer that says nothing for so long is gone, and one that takes nothing for so long as well.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Time from one sign of life to the next.
pub const BEAT: Duration = Duration::from_secs(1);
/// Frames that wait to be looked at.
const WAITING: usize = 16;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side has closed it.
    #[error("the other host has closed the connection")]
    Closed,
    /// Nothing comes, or nothing goes.
    #[error("the other host has been silent for {} seconds: the link is cut or stalled", SILENCE.as_secs())]
    Silent,
    /// The connection failed.
    #[error("the connection to the other host failed: {0}")]
    Io(io::Error),
    /// What came is not this protocol.
    #[error("the other host does not speak this protocol: {0}")]
    Damaged(#[from] FrameError),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        if matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe) {
            Self::Closed
        } else {
            Self::Io(error)
        }
    }
}

/// A connection that counts.
pub struct Counted {
    inner: Box<dyn Channel>,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    /// Counts what goes through `inner`, both ways, in `bytes`.
    #[must_use]
    pub fn new(inner: Box<dyn Channel>, bytes: Arc<AtomicU64>) -> Self {
        Self { inner, bytes }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.bytes.fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.bytes.fetch_add(*written as u64, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What one side of the protocol can say.
pub trait Frame: Sized + Send + 'static {
    /// See [`ToSource::decode`].
    fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError>;
    /// See [`ToSource::encode`].
    fn encode(&self) -> Vec<u8>;
}

impl Frame for ToSource {
    fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        Self::decode(kind, body)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }
}

impl Frame for ToDestination {
    fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        Self::decode(kind, body)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }
}

/// The writing end of a control connection; clones write to the same one.
#[derive(Clone)]
pub struct Speaker(Arc<Mutex<WriteHalf<Counted>>>);

impl Speaker {
    /// Sends a frame.
    ///
    /// # Errors
    /// If the connection is broken or nothing is taken for too long; then it is of no more use.
    pub async fn say<F: Frame>(&self, frame: &F) -> Result<(), LinkError> {
        self.send(&frame.encode()).await
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), LinkError> {
        let send = async {
            let mut io = self.0.lock().await;
            io.write_all(bytes).await?;
            io.flush().await
        };
        timeout(SILENCE, send).await.map_err(|_| LinkError::Silent)?.map_err(LinkError::from)
    }

    /// Says that nothing more will come.
    pub async fn close(&self) {
        let close = async { self.0.lock().await.shutdown().await };
        let _ = timeout(BEAT, close).await;
    }
}

/// Frames as they come in. The last one is an error.
pub type Frames<F> = mpsc::Receiver<Result<F, LinkError>>;

/// Splits a control connection. What comes is read by a task that ends with the connection or with `stop`; signs of life are answered and swallowed
/// there, whatever else goes on.
pub fn open<F: Frame>(io: Counted, stop: CancellationToken, answer: Answer<F>) -> (Speaker, Frames<F>) {
    let (reader, writer) = tokio::io::split(io);
    let speaker = Speaker(Arc::new(Mutex::new(writer)));
    let (sender, frames) = mpsc::channel(WAITING);
    let ours = speaker.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = read(reader, ours, sender, answer) => {}
            () = stop.cancelled() => {}
        }
    });
    (speaker, frames)
}

/// What a sign of life is answered with, if the frame is one; `None` for all other frames.
pub type Answer<F> = fn(&F) -> Option<Option<Vec<u8>>>;

/// At the destination.
#[must_use]
pub fn pong(frame: &ToDestination) -> Option<Option<Vec<u8>>> {
    (*frame == ToDestination::Ping).then(|| Some(ToSource::Pong.encode()))
}

/// At the source.
#[must_use]
pub fn swallow(frame: &ToSource) -> Option<Option<Vec<u8>>> {
    (*frame == ToSource::Pong).then_some(None)
}

async fn read<F: Frame>(
    mut io: ReadHalf<Counted>,
    speaker: Speaker,
    sender: mpsc::Sender<Result<F, LinkError>>,
    answer: Answer<F>,
) {
    loop {
        let frame = match timeout(SILENCE, frame::<F>(&mut io)).await {
            Ok(frame) => frame,
            Err(_) => Err(LinkError::Silent),
        };
        let alive = match &frame {
            Ok(frame) => answer(frame),
            Err(_) => None,
        };
        if let Some(reply) = alive {
            if let Some(reply) = reply
                && speaker.send(&reply).await.is_err()
            {
                let _ = sender.send(Err(LinkError::Closed)).await;
                return;
            }
            continue;
        }
        let last = frame.is_err();
        if sender.send(frame).await.is_err() || last {
            return;
        }
    }
}

async fn frame<F: Frame>(io: &mut ReadHalf<Counted>) -> Result<F, LinkError> {
    let mut head = [0; FRAME_HEADER];
    io.read_exact(&mut head).await?;
    let (length, kind) = ToSource::head(head)?;
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    Ok(F::decode(kind, &body)?)
}
