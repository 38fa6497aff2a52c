//! Just enough HTTP/1.1 to ask memdexd, written by hand so that tests can also send what no client would. Owns one
//! exchange on a fresh connection.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// No exchange takes longer.
const BOUND: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines in lower case.
    pub head: String,
    /// Body without chunk framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", String::from_utf8_lossy(&self.body)))
    }
}

/// Asks over a Unix socket.
///
/// # Errors
/// The connection fails, ends early, or the answer is not HTTP.
pub fn unix(socket: &Path, method: &str, path: &str, headers: &[&str]) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_write_timeout(Some(BOUND))?;
    exchange(stream, request(method, path, headers).as_bytes())
}

/// Asks over TCP on loopback.
///
/// # Errors
/// The connection fails, ends early, or the answer is not HTTP.
pub fn tcp(port: u16, method: &str, path: &str, headers: &[&str]) -> io::Result<Answer> {
    tcp_raw(port, request(method, path, headers).as_bytes())
}

/// Sends any bytes over TCP and takes what comes back for an answer.
///
/// # Errors
/// The connection fails, ends early, or the answer is not HTTP.
pub fn tcp_raw(port: u16, bytes: &[u8]) -> io::Result<Answer> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_write_timeout(Some(BOUND))?;
    exchange(stream, bytes)
}

fn request(method: &str, path: &str, headers: &[&str]) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: memdex\r\nConnection: close\r\n");
    if method == "POST" && !headers.iter().any(|line| line.starts_with("Content-Length")) {
        text += "Content-Length: 0\r\n";
    }
    for line in headers {
        text += line;
        text += "\r\n";
    }
    text + "\r\n"
}

/// Sends any bytes on a connection that is open, and takes what comes back until its end for an answer.
///
/// # Errors
/// The connection fails, ends early, or the answer is not HTTP.
pub fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> io::Result<Answer> {
    // A server may answer and close before it has taken everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !answer.is_empty() => {}
        Err(error) => return Err(error),
    }
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let end =
        answer.windows(4).position(|part| part == b"\r\n\r\n").ok_or_else(|| bad("no end of headers"))?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| bad("no status"))?;
    let body = &answer[end + 4..];
    let body = if head.contains("transfer-encoding: chunked") {
        unchunk(body).ok_or_else(|| bad("bad chunks"))?
    } else {
        body.to_vec()
    };
    Ok(Answer { status, head, body })
}

fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|part| part == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?.trim(), 16).ok()?;
        body = &body[end + 2..];
        if length == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(body.get(..length)?);
        body = body.get(length + 2..)?;
    }
}
