//! A TCP relay between the two ends of a migration. Owns counting the bytes that cross; changes nothing about them and
//! holds at most a buffer for each direction of a connection.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Bytes read at a time: a copy of so much stays in the CPU's cache.
const BUFFER: usize = 256 << 10;
/// How often the relay looks for a new connection.
const LOOK: Duration = Duration::from_millis(1);
/// How long the last bytes may take once both ends are done.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens on loopback and passes each connection on to one address.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    forth: AtomicU64,
    back: AtomicU64,
    /// Directions of connections that are open.
    open: AtomicU64,
    stop: AtomicBool,
    /// Both ends of each connection, to be closed when the relay goes.
    streams: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// A relay to this address.
    pub(crate) fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let listener = thread::spawn(move || theirs.listen(&listener, target));
        Ok(Self { address, shared, listener: Some(listener) })
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that crossed so far, both ways together.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.forth.load(Ordering::Relaxed) + self.shared.back.load(Ordering::Relaxed)
    }

    /// Waits until every connection has ended; all bytes that crossed.
    pub(crate) fn finish(self) -> u64 {
        let begun = Instant::now();
        while self.shared.open.load(Ordering::Acquire) > 0 && begun.elapsed() < PATIENCE {
            thread::sleep(LOOK);
        }
        self.bytes()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        for stream in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn listen(self: &Arc<Self>, listener: &TcpListener, target: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((from, _)) => {
                    if let Err(error) = self.connect(&from, target) {
                        eprintln!("a connection can't be passed on to {target}: {error}");
                    }
                }
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    fn connect(self: &Arc<Self>, from: &TcpStream, target: SocketAddr) -> io::Result<()> {
        let to = TcpStream::connect(target)?;
        from.set_nonblocking(false)?;
        for stream in [from, &to] {
            stream.set_nodelay(true)?;
            self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone()?);
        }
        let forth = (from.try_clone()?, to.try_clone()?);
        let back = (to, from.try_clone()?);
        self.open.fetch_add(2, Ordering::AcqRel);
        for (is_forth, (from, to)) in [(true, forth), (false, back)] {
            let shared = Arc::clone(self);
            thread::spawn(move || {
                let count = if is_forth { &shared.forth } else { &shared.back };
                // An end that is gone is the end of this direction; what it got till then is counted.
                let _ = pass_on(&from, &to, count);
                let _ = to.shutdown(Shutdown::Write);
                shared.open.fetch_sub(1, Ordering::AcqRel);
            });
        }
        Ok(())
    }
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..len])?;
        count.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Bytes a second that a relay passes on when there is nothing else to do: it must not be what a migration waits for.
pub(crate) fn rate() -> f64 {
    const BYTES: usize = 1 << 30;
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback can be listened on");
    let relay = Relay::to(sink.local_addr().expect("its address")).expect("a relay");
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = TcpStream::connect(relay.address()).expect("the relay listens");
            let piece = vec![7; 1 << 20];
            (0..BYTES >> 20).for_each(|_| stream.write_all(&piece).expect("the relay reads"));
        });
        let (mut stream, _) = sink.accept().expect("the relay connects");
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).expect("the relay writes") > 0 {}
    });
    assert_eq!(relay.bytes(), BYTES as u64, "the relay counts what crosses");
    BYTES as f64 / begun.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_passed_on_and_counted_both_ways() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::to(server.local_addr().unwrap()).unwrap();
        let mut clients = Vec::new();
        for number in 0..3_u8 {
            let mut client = TcpStream::connect(relay.address()).unwrap();
            let (mut served, _) = server.accept().unwrap();
            client.write_all(&vec![number; 1_000_000]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            served.read_to_end(&mut got).unwrap();
            assert_eq!(got, vec![number; 1_000_000]);
            served.write_all(b"thanks").unwrap();
            drop(served);
            clients.push(client);
        }
        for mut client in clients {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "thanks");
        }
        assert_eq!(relay.finish(), 3 * 1_000_006);
    }
}
