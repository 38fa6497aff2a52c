//! The baseline: bytes over TCP on loopback, from memory into a buffer, with nothing in between. A thread at each end, in large pieces.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

/// Bytes in one read or write: more makes it no faster.
const PIECE: usize = 256 << 10;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let near = TcpStream::connect(listener.local_addr().expect("it has an address")).expect("it listens");
    let (far, _) = listener.accept().expect("somebody connected");
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("a socket option");
    }
    (near, far)
}

/// Copies `memory` as often as that.
pub(super) fn copy(memory: &[u8], times: usize) {
    let (mut near, mut far) = pair();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..times {
                for piece in memory.chunks(PIECE) {
                    near.write_all(piece).expect("the other end reads");
                }
            }
        });
        let total = memory.len() * times;
        assert_eq!(drain(&mut far, total), total);
    });
}

/// Sends each of `bodies` and waits for an answer of `answer` bytes to it.
pub(super) fn exchange(bodies: &[Vec<u8>], answer: usize) {
    let (mut near, mut far) = pair();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for body in bodies {
                near.write_all(body).expect("the other end reads");
                assert_eq!(drain(&mut near, answer), answer);
            }
        });
        let reply = vec![0x5a; answer];
        for body in bodies {
            assert_eq!(drain(&mut far, body.len()), body.len());
            far.write_all(&reply).expect("the other end reads");
        }
    });
}

/// Reads `total` bytes, or all there are.
fn drain(stream: &mut TcpStream, total: usize) -> usize {
    let mut buffer = vec![0; PIECE];
    let mut read = 0;
    while read < total {
        match stream.read(&mut buffer[..PIECE.min(total - read)]).expect("the other end sends") {
            0 => break,
            some => read += some,
        }
    }
    read
}
