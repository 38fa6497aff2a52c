//! Hosts to talk to: one that answers properly (axum), and ones that write whatever bytes a test wants.
//!
//! They stand for a *peer*, good or bad, never for the daemon: that is tested with the real one, elsewhere.
#![expect(dead_code, reason = "each test program has a copy and uses its own part")]

pub mod command;
pub mod good;
pub mod mover;

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use migrate_client::{Client, ClientOptions, HostUrl, Timeouts, Token};
use tempfile::TempDir;

/// Time limits that make a test of them short.
pub fn hasty() -> Timeouts {
    let short = Duration::from_millis(400);
    Timeouts {
        connect: short,
        answer: short,
        diff: short,
        verify: short,
        piece: short,
        quiet: short,
        sight: short,
    }
}

/// What a peer has been asked: the request line, then header lines.
pub struct Asked(pub String);

impl Asked {
    pub fn path(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or_default()
    }
}

pub trait Connection: Read + Write {}
impl<T: Read + Write> Connection for T {}

/// A peer that reads a request and then does what it likes with the connection. It is there on TCP and on a Unix
/// socket; its threads end with the test program.
pub struct Peer {
    pub tcp: HostUrl,
    pub unix: HostUrl,
    _folder: TempDir,
}

impl Peer {
    pub fn new(
        behaviour: impl Fn(&Asked, &mut dyn Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let behaviour = Arc::new(behaviour);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer.sock");
        let (unix, tcp) = (UnixListener::bind(&path).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let port = tcp.local_addr().unwrap().port();
        let also = Arc::clone(&behaviour);
        thread::spawn(move || unix.incoming().for_each(|c| serve(c.unwrap(), Arc::clone(&also))));
        thread::spawn(move || tcp.incoming().for_each(|c| serve(c.unwrap(), Arc::clone(&behaviour))));
        Self {
            tcp: format!("tcp://127.0.0.1:{port}").parse().unwrap(),
            unix: HostUrl::Unix(path),
            _folder: folder,
        }
    }

    /// A peer that answers everything with these bytes and then closes the connection.
    pub fn says(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::new(move |_, connection| connection.write_all(&answer))
    }

    /// Clients over both ways, with short time limits and, over TCP, a token.
    pub fn clients(&self) -> [Client; 2] {
        let token = Some(Token::new("secret").unwrap());
        let options = |token| ClientOptions { token, timeouts: hasty(), ..ClientOptions::default() };
        [
            Client::new(self.unix.clone(), options(None)).unwrap(),
            Client::new(self.tcp.clone(), options(token)).unwrap(),
        ]
    }
}

fn serve<C, B>(mut connection: C, behaviour: Arc<B>)
where
    C: Connection + Send + 'static,
    B: Fn(&Asked, &mut dyn Connection) -> io::Result<()> + Send + Sync + 'static,
{
    thread::spawn(move || {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(connection.read(&mut byte), Ok(1)) {
                return;
            }
            head.extend_from_slice(&byte);
        }
        // Bodies of requests stay unread: an answer may come before.
        let _ = behaviour(&Asked(String::from_utf8(head).unwrap()), &mut connection);
    });
}

/// Status 200 with a length and a body.
pub fn ok(media_type: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A status with a problem document.
pub fn problem(status: u16, code: &str, detail: &str) -> Vec<u8> {
    let body =
        format!(r#"{{"title":"t","status":{status},"code":"{code}","retryable":false,"detail":"{detail}"}}"#);
    let head = format!(
        "HTTP/1.1 {status} No\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    (head + &body).into()
}

/// A folder and the path of a socket in it that nobody listens on.
pub fn nobody() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody.sock");
    drop(UnixListener::bind(&path).unwrap());
    (folder, path)
}
