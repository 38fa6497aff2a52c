//! Where the daemon can be asked: Unix socket, TCP on loopback, TLS anywhere.
//!
//! Owns sockets, certificates, the token file, and how long a connection may take. Never looks into a request: that is
//! [`crate::api`].

mod serve;
mod stall;
mod tls;
mod token;
mod unix;

use std::{io, net::SocketAddr, path::PathBuf};

use migrate_client::{Authority, HostUrl};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;

pub use serve::{Access, Server};
pub use token::{AccessToken, TokenError, token_file};
use unix::UnixSocket;

/// Connections that may wait to be accepted. The libraries' own number is 128, and who comes beyond that may be reset after it was connected.
const BACKLOG: u32 = 1024;

/// A socket that is open and not yet served.
#[derive(Debug)]
pub struct Listener {
    url: HostUrl,
    socket: Socket,
}

enum Socket {
    Unix(UnixSocket),
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unix(_) => "Unix",
            Self::Tcp(_) => "Tcp",
            Self::Tls(..) => "Tls",
        })
    }
}

/// Why the daemon cannot listen somewhere.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon serves this socket.
    #[error("another memdexd is serving {0}: stop it, or give this one another --listen")]
    Busy(HostUrl),
    /// Something that is not a socket stands at the path.
    #[error("{0} is there and is not a socket: it is left alone; move it away or give another --listen")]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {url}: {error}; {advice}")]
    System {
        /// Where.
        url: HostUrl,
        /// Why.
        error: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Plain TCP that could be reached from other machines.
    #[error("{0} can be reached from other machines without encryption: use tls:// or a loopback address")]
    InTheClear(HostUrl),
    /// The certificate or key cannot be used.
    #[error("{what} {path} cannot be used: {why}; give a PEM file under [tls] in the configuration")]
    Certificate {
        /// Which of the files.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl ListenError {
    fn system(url: &HostUrl, error: io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => "run as root, or choose a place this user may use",
            io::ErrorKind::AddrInUse => "see what else uses it, or choose another port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this machine",
            _ => "choose another address",
        };
        Self::System { url: url.clone(), error, advice }
    }
}

impl Listener {
    /// Opens a socket. Only this process's own stale socket file is ever replaced.
    ///
    /// # Errors
    /// If the address is in use, not allowed, or its certificate is not usable.
    pub async fn bind(url: &HostUrl, files: &TlsFiles) -> Result<Self, ListenError> {
        let socket = match url {
            HostUrl::Unix(path) => Socket::Unix(UnixSocket::bind(url, path)?),
            HostUrl::Tcp(authority) => {
                let addresses = resolve(url, authority).await?;
                // Names are resolved first: what counts is where the socket really is.
                if !addresses.iter().all(|address| address.ip().to_canonical().is_loopback()) {
                    return Err(ListenError::InTheClear(url.clone()));
                }
                Socket::Tcp(open(url, &addresses)?)
            }
            HostUrl::Tls(authority) => {
                let acceptor = tls::acceptor(files)?;
                let addresses = resolve(url, authority).await?;
                Socket::Tls(open(url, &addresses)?, acceptor)
            }
        };
        Ok(Self { url: url.clone(), socket })
    }

    /// The address it was opened with.
    #[must_use]
    pub fn url(&self) -> &HostUrl {
        &self.url
    }
}

async fn resolve(url: &HostUrl, authority: &Authority) -> Result<Vec<SocketAddr>, ListenError> {
    let host = authority.host();
    let found = tokio::net::lookup_host((host.as_str(), authority.port())).await;
    let addresses: Vec<_> = found.map_err(|error| ListenError::system(url, error))?.collect();
    if addresses.is_empty() {
        return Err(ListenError::system(url, io::Error::other("the name has no address")));
    }
    Ok(addresses)
}

/// Opens the first of the addresses that can be had.
fn open(url: &HostUrl, addresses: &[SocketAddr]) -> Result<TcpListener, ListenError> {
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        match listen(*address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(ListenError::system(url, last))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
