//! A lean HTTP/1.1 client: one connection that is kept, one buffer, no copy of a body. Owns just enough of the protocol for memdexd's answers.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use memdex_wire::bulk;

const BUFFER: usize = 256 << 10;

pub(super) struct Connection {
    stream: TcpStream,
    token: String,
    buffer: Vec<u8>,
    /// What was read and not used yet.
    start: usize,
    end: usize,
}

impl Connection {
    pub(super) fn open(port: u16, token: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the daemon listens");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, token: token.to_owned(), buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    /// Asks, and hands the body of the answer to `each`. Returns its length.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        accept: &str,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> usize {
        let head = head(method, path, accept, &self.token, body.len());
        self.stream.write_all(head.as_bytes()).expect("the daemon reads");
        self.stream.write_all(body).expect("the daemon reads");
        let head = self.line_group();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        if let Some(length) = field(&head, "content-length") {
            let length = length.parse().expect("a number");
            self.take(length, &mut each);
            return length;
        }
        assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{head}");
        let mut total = 0;
        loop {
            let line = self.line();
            let length = usize::from_str_radix(line.trim(), 16).expect("the length of a chunk");
            self.take(length, &mut each);
            assert_eq!(self.line(), "\r\n");
            total += length;
            if length == 0 {
                return total;
            }
        }
    }

    fn fill(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).expect("the daemon answers");
        assert!(read > 0, "the daemon broke off");
        self.end += read;
    }

    fn take(&mut self, mut length: usize, each: &mut impl FnMut(&[u8])) {
        while length > 0 {
            if self.start == self.end {
                self.fill();
            }
            let piece = length.min(self.end - self.start);
            each(&self.buffer[self.start..self.start + piece]);
            self.start += piece;
            length -= piece;
        }
    }

    fn until(&mut self, mark: &[u8]) -> String {
        loop {
            let there = &self.buffer[self.start..self.end];
            if let Some(at) = there.windows(mark.len()).position(|some| some == mark) {
                let text = String::from_utf8_lossy(&there[..at + mark.len()]).to_lowercase();
                self.start += at + mark.len();
                return text;
            }
            self.fill();
        }
    }

    fn line(&mut self) -> String {
        self.until(b"\r\n")
    }

    fn line_group(&mut self) -> String {
        self.until(b"\r\n\r\n")
    }
}

/// The head of a request.
pub(super) fn head(method: &str, path: &str, accept: &str, token: &str, length: usize) -> String {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: memdex\r\naccept: {accept}\r\nauthorization: Bearer {token}\r\n"
    );
    if method == "POST" {
        head += &format!("content-type: {}\r\ncontent-length: {length}\r\n", bulk::FINGERPRINTS);
    }
    head + "\r\n"
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}
