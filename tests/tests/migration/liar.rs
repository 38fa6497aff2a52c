//! One end of a migration that is played by a test: upgraded connections, frames, and whatever else it pleases to send.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use memdex_tests::Daemon;
use memdex_wire::transfer::{FRAME_HEADER, PROTOCOL, ToDestination, ToSource};

/// No answer takes longer.
const BOUND: Duration = Duration::from_secs(60);

/// An upgraded connection.
pub struct Line(pub TcpStream);

impl Line {
    /// Opens one at a daemon: `end` is `receive` or `stream`.
    pub fn open(daemon: &Daemon, id: &str, end: &str) -> Self {
        let token = std::fs::read_to_string(daemon.token_file()).expect("a token");
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).expect("the daemon listens");
        stream.set_read_timeout(Some(BOUND)).expect("a time-out can be set");
        stream.set_nodelay(true).expect("it can be set");
        let request = format!(
            "POST /v1/migrations/{id}/{end} HTTP/1.1\r\nHost: memdex\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n",
            token.trim()
        );
        stream.write_all(request.as_bytes()).expect("the daemon reads");
        let head = head(&mut stream).expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self(stream)
    }

    /// Sends a frame, or anything else. Whoever is lied to may be gone already.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; FRAME_HEADER];
        self.0.read_exact(&mut head)?;
        let (length, kind) = ToSource::head(head).map_err(io::Error::other)?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((kind, body))
    }

    /// What the destination says next.
    pub fn hear_destination(&mut self) -> io::Result<ToSource> {
        loop {
            let (kind, body) = self.frame()?;
            match ToSource::decode(kind, &body).map_err(io::Error::other)? {
                ToSource::Pong => {}
                frame => return Ok(frame),
            }
        }
    }

    /// What the source says next; it is told that we live.
    pub fn hear_source(&mut self) -> io::Result<ToDestination> {
        loop {
            let (kind, body) = self.frame()?;
            match ToDestination::decode(kind, &body).map_err(io::Error::other)? {
                ToDestination::Ping => self.send(&ToSource::Pong.encode()),
                frame => return Ok(frame),
            }
        }
    }
}

fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A destination that follows a script on its control connection, and reads what comes on the others.
pub struct Liar {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    pub fn new(script: impl Fn(Line) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be listened on");
        let port = listener.local_addr().expect("its address").port();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, script) = (Arc::clone(&stop), Arc::new(script));
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let script = Arc::clone(&script);
                thread::spawn(move || {
                    let Ok(request) = head(&mut stream) else { return };
                    let control = request.contains("/receive ");
                    if !control && !request.contains("/stream ") {
                        // It does not even answer who asks.
                        return;
                    }
                    let answer = format!(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
                    );
                    let _ = stream.set_nodelay(true);
                    let _ = stream.write_all(answer.as_bytes());
                    if control {
                        script(Line(stream));
                    } else {
                        let _ = io::copy(&mut stream, &mut io::sink());
                    }
                });
            }
        });
        Self { port, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
