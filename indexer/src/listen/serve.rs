//! Accepting connections and ending them: limits in number and time, and a stop that is quick.
//!
//! Owns every connection's life. Each listener has its own limit, so that strangers on TCP cannot shut out the Unix
//! socket.

use std::{fmt, io, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Layer;

use super::{Listener, Socket, stall::Stall};
use crate::metrics::HttpCounters;

/// Connections a listener has open at once; further ones wait in the system's queue. Each may hold two buffers (see [`BUFFER`]) when it is busy, some
/// kilobytes when it is not.
const MAX_CONNECTIONS: usize = 1024;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the head of a request, and for the next request on a connection that is kept.
const HEAD: Duration = Duration::from_secs(30);
/// Time in which a client must take at least something of what is sent to it.
const STALL: Duration = Duration::from_secs(30);
/// Bytes buffered for a connection, each way.
const BUFFER: usize = 64 << 10;
/// Header fields of a request.
const MAX_HEADERS: usize = 64;
/// Time between two tries when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether a connection must show the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The file mode of the Unix socket let the client in.
    FileMode,
    /// TCP: anybody can connect.
    Token,
}

/// Serves listeners until it is told to stop.
#[derive(Clone)]
pub struct Server {
    app: Router,
    figures: Arc<HttpCounters>,
    /// No new connections, and those there are end after the request at hand.
    stop: CancellationToken,
    /// Connections end now.
    kill: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Server {
    /// A server of `app` that stops when `stop` is cancelled.
    #[must_use]
    pub fn new(app: Router, figures: Arc<HttpCounters>, stop: CancellationToken) -> Self {
        Self { app, figures, stop, kill: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    /// Begins to serve a listener.
    pub fn serve(&self, listener: Listener) {
        let server = self.clone();
        self.tasks.spawn(async move {
            let url = listener.url.clone();
            tracing::info!(%url, "listening");
            server.accept(listener).await;
            tracing::debug!(%url, "no longer listening");
        });
    }

    /// Waits until all connections have ended. Call it once `stop` is cancelled; what is still open after `patience`
    /// is cut off. Socket files are gone when it returns.
    pub async fn finish(self, patience: Duration) {
        self.tasks.close();
        if timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::info!(connections = self.tasks.len(), "cutting off connections that are still busy");
            self.kill.cancel();
            // Each task ends at its next turn; one that never gives up its turn must not hold up the stop.
            let _ = timeout(Duration::from_millis(500), self.tasks.wait()).await;
        }
    }

    async fn accept(&self, listener: Listener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = tokio::select! {
                place = self.place(&places) => place,
                () = self.stop.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = self.next(&listener.socket, place) => accepted,
                () = self.stop.cancelled() => break,
            };
            if let Err(error) = accepted {
                tracing::warn!(url = %listener.url, %error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn place(&self, places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        if places.available_permits() == 0 {
            self.figures.full.add(1);
        }
        Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed")
    }

    async fn next(&self, socket: &Socket, place: OwnedSemaphorePermit) -> io::Result<()> {
        match socket {
            Socket::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                self.spawn(place, Access::FileMode, async { Ok(stream) });
            }
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                self.spawn(place, Access::Token, async { Ok(stream) });
            }
            Socket::Tls(listener, acceptor) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let acceptor = acceptor.clone();
                self.spawn(place, Access::Token, async move {
                    timeout(HANDSHAKE, acceptor.accept(stream))
                        .await
                        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake")))
                });
            }
        }
        Ok(())
    }

    fn spawn<S>(
        &self,
        place: OwnedSemaphorePermit,
        access: Access,
        stream: impl Future<Output = io::Result<S>> + Send + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.clone();
        self.tasks.spawn(async move {
            let _open = Open::new(&server.figures);
            tokio::select! {
                result = server.connection(access, stream) => {
                    if let Err(error) = result {
                        server.figures.broken_connections.add(1);
                        tracing::debug!(error = &*error, "a connection failed");
                    }
                }
                () = server.kill.cancelled() => {}
            }
            drop(place);
        });
    }

    async fn connection<S>(
        &self,
        access: Access,
        stream: impl Future<Output = io::Result<S>>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(Stall::new(stream.await?, STALL));
        let service = TowerToHyperService::new(Extension(access).layer(self.app.clone()));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(BUFFER)
            .max_headers(MAX_HEADERS)
            .serve_connection(stream, service)
            // The connections of a migration.
            .with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

/// Counts a connection for as long as it is open.
struct Open(Arc<HttpCounters>);

impl Open {
    fn new(figures: &Arc<HttpCounters>) -> Self {
        figures.connections.add(1);
        figures.open_connections.add(1);
        Self(Arc::clone(figures))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open_connections.sub(1);
    }
}
