//! A TCP relay between the two ends of a migration. Owns counting the bytes that cross, and the link's faults: it can be
//! cut, stalled and mended. Changes no byte and holds at most a buffer for each direction of a connection.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Bytes read at a time: a copy of so much stays in the CPU's cache.
const BUFFER: usize = 256 << 10;
/// Longest piece in which a message is looked for: pages may hold any bytes.
const SMALL: usize = 64;
/// How often the relay looks for a new connection.
const LOOK: Duration = Duration::from_millis(1);
/// How long the last bytes may take once both ends are done.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens on loopback and passes each connection on to one address.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

/// A message at which the link breaks, once.
#[derive(Debug, Clone)]
pub struct Trap {
    /// Bytes of the message. It is looked for in what comes by in one small piece, and at the end of a great one.
    pub message: Vec<u8>,
    /// Whether the message itself still arrives.
    pub arrives: bool,
    /// Whether the link is cut or stalled.
    pub cut: bool,
}

#[derive(Debug, Default)]
struct Shared {
    forth: AtomicU64,
    back: AtomicU64,
    /// Directions of connections that are open.
    open: AtomicU64,
    stop: AtomicBool,
    /// Nothing is passed on, and nobody is told.
    stalled: AtomicBool,
    /// Connections are closed as soon as they are made.
    cut: AtomicBool,
    /// What is to happen when a certain message comes by.
    trap: Mutex<Option<Trap>>,
    /// Both ends of each connection, to be closed when the relay goes.
    streams: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// A relay to this address.
    ///
    /// # Errors
    /// If loopback has no free port.
    pub fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let listener = thread::spawn(move || theirs.listen(&listener, target));
        Ok(Self { address, shared, listener: Some(listener) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections, and each new one until the link is mended.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.close_all();
    }

    /// Passes nothing on until the link is mended. Connections stay open and new ones are taken, as if every packet were lost.
    pub fn stall(&self) {
        self.shared.stalled.store(true, Ordering::SeqCst);
    }

    /// Has the link break when a message comes by.
    pub fn set(&self, trap: Trap) {
        *self.shared.trap() = Some(trap);
    }

    /// Whether that has happened.
    #[must_use]
    pub fn has_sprung(&self) -> bool {
        self.shared.trap().is_none()
    }

    /// The link is as it was. What was held back by a stall goes on its way.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
        self.shared.stalled.store(false, Ordering::SeqCst);
    }

    /// Bytes that crossed so far, both ways together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.forth.load(Ordering::Relaxed) + self.shared.back.load(Ordering::Relaxed)
    }

    /// Waits until every connection has ended; all bytes that crossed.
    #[must_use]
    pub fn finish(self) -> u64 {
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
        self.shared.close_all();
    }
}

impl Shared {
    fn close_all(&self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn trap(&self) -> MutexGuard<'_, Option<Trap>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks the link if this is what was waited for; `before` the piece is passed on, or after.
    fn spring(&self, piece: &[u8], before: bool) {
        let mut trap = self.trap();
        let sprung = trap.as_ref().filter(|trap| {
            trap.arrives != before
                && match piece.len() <= SMALL {
                    true => piece.windows(trap.message.len()).any(|part| part == trap.message),
                    false => piece.ends_with(&trap.message),
                }
        });
        let Some(cut) = sprung.map(|trap| trap.cut) else { return };
        if cut {
            self.cut.store(true, Ordering::SeqCst);
            self.close_all();
        } else {
            self.stalled.store(true, Ordering::SeqCst);
        }
        *trap = None;
    }

    fn listen(self: &Arc<Self>, listener: &TcpListener, target: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((from, _)) if self.cut.load(Ordering::SeqCst) => drop(from),
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
        if self.cut.load(Ordering::SeqCst) {
            // Cut while it was being made.
            self.close_all();
        }
        for (is_forth, (from, to)) in [(true, forth), (false, back)] {
            let shared = Arc::clone(self);
            thread::spawn(move || {
                // An end that is gone is the end of this direction; what it got till then is counted.
                let _ = shared.pass_on(&from, &to, is_forth);
                let _ = to.shutdown(Shutdown::Write);
                shared.open.fetch_sub(1, Ordering::AcqRel);
            });
        }
        Ok(())
    }

    fn pass_on(&self, mut from: &TcpStream, mut to: &TcpStream, is_forth: bool) -> io::Result<()> {
        let count = if is_forth { &self.forth } else { &self.back };
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = match from.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.spring(&buffer[..len], true);
            // An end is no more seen through a stalled link than anything else.
            while self.stalled.load(Ordering::SeqCst) && !self.stop.load(Ordering::Relaxed) {
                thread::sleep(LOOK);
            }
            if len == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..len])?;
            self.spring(&buffer[..len], false);
            count.fetch_add(len as u64, Ordering::Relaxed);
        }
    }
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
    #[test]
    fn a_stalled_link_loses_nothing_and_a_cut_one_is_closed() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::to(server.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        let (mut served, _) = server.accept().unwrap();
        served.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        relay.stall();
        client.write_all(b"late").unwrap();
        let mut got = [0; 4];
        assert!(served.read(&mut got).is_err(), "nothing comes");
        relay.mend();
        served.set_read_timeout(None).unwrap();
        served.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"late");
        relay.cut();
        assert_eq!(served.read(&mut got).unwrap(), 0);
        let mut refused = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(refused.read(&mut got).unwrap_or(0), 0);
        relay.mend();
        let mut again = TcpStream::connect(relay.address()).unwrap();
        let (mut served, _) = server.accept().unwrap();
        again.write_all(b"back").unwrap();
        served.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"back");
    }
}
