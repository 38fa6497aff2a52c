//! What the relay that counts can do by itself. Owns that figure; the relay is [`memdex_tests::relay`].

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use memdex_tests::relay::Relay;

/// Bytes a second that a relay passes on when there is nothing else to do: it must not be what a migration waits for.
pub(super) fn rate() -> f64 {
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
