//! Protects the promise that many clients, and clients that do not read, cost the daemon little memory and shut nobody out.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::Barrier,
    time::Duration,
};

use memdex_tests::{Daemon, Scratch, Tiny, contract::Vm, daemon, http, tiny, wait};
use memdex_wire::{Fingerprint, bulk};

const CLIENTS: usize = 1000;
/// What all of them together may make the daemon grow by.
const ROOM: u64 = 64 << 20;
/// Longest silence of the daemon towards any of them, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients that do not read: three times as many as are served with maps at once.
const STOPPED: usize = 48;

/// A daemon and a guest of which some pages are written.
fn start(scratch: &Scratch, mib: u64) -> (Daemon, Tiny, Vm) {
    let options = tiny::Options { mib, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(scratch, &scratch.name("m"), &options);
    guest.write(16, 1000, 70_000);
    let options = daemon::Options { tcp: true, ..daemon::Options::default() };
    let daemon = Daemon::start_with(scratch, "memdexd", &options);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    daemon.sync(&vm.id);
    (daemon, guest, vm)
}

/// Bytes by which a process has grown at most while `work` was done.
fn growth(pid: u32, work: impl FnOnce()) -> u64 {
    let kib = |name: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    // Makes the peak what is resident now, proc_pid_clear_refs(5).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("root may do that");
    let before = kib("VmRSS:");
    work();
    kib("VmHWM:").saturating_sub(before) << 10
}

/// A request as bytes.
fn request(daemon: &Daemon, method: &str, path: &str, accept: &str, body: &[u8]) -> Vec<u8> {
    let token = fs::read_to_string(daemon.token_file()).expect("the daemon made a token");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: memdex\r\nConnection: close\r\nAuthorization: Bearer {}\r\nAccept: {accept}\r\n",
        token.trim()
    );
    let body_head = format!("Content-Type: {}\r\nContent-Length: {}\r\n\r\n", bulk::FINGERPRINTS, body.len());
    [head.as_bytes(), if method == "POST" { body_head.as_bytes() } else { b"\r\n" }, body].concat()
}

/// What the clients ask for, each with the answer that one client alone gets; these are checked.
fn questions(daemon: &Daemon, vm: &Vm) -> Vec<(Vec<u8>, Vec<u8>)> {
    let answer = |request: &[u8]| {
        let answer = http::tcp_raw(daemon.port(), request).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.head);
        answer.body
    };
    let known: Vec<Fingerprint> =
        daemon.pages(&vm.id).iter().filter_map(|page| page.fingerprint.as_ref()?.parse().ok()).collect();
    assert!(known.len() > 1000, "{} pages have a fingerprint", known.len());

    let map = request(daemon, "GET", &format!("/v1/vms/{}/pages", vm.id), bulk::PAGES, &[]);
    let whole = answer(&map);
    let records = whole[bulk::PAGES_HEADER..].as_chunks::<{ bulk::PAGE_RECORD }>().0;
    let listed: Vec<_> = records
        .iter()
        .filter_map(|record| bulk::decode_page(record).expect("a record").fingerprint)
        .collect();
    assert_eq!(listed, known, "the map in both forms");

    let mut asked = known.clone();
    asked.extend((0..500u64).map(|n| Fingerprint::new(*blake3::hash(&n.to_le_bytes()).as_bytes())));
    let list = bulk::encode_fingerprints(bulk::KeyId::PLAIN, &asked);
    let lookup = request(daemon, "POST", "/v1/content/lookup", bulk::BITMAP, &list);
    let held = answer(&lookup);
    let bitmap = bulk::decode_bitmap(asked.len() as u32, &held).expect("a bitmap");
    assert!(bitmap.iter().eq(0..known.len() as u32), "{bitmap:?}");

    let list = bulk::encode_fingerprints(bulk::KeyId::PLAIN, &known[..100]);
    let contents = request(daemon, "POST", "/v1/content/pages", bulk::CONTENTS, &list);
    let pages = answer(&contents);
    let records = pages[bulk::CONTENTS_HEADER..].as_chunks::<{ bulk::CONTENT_RECORD }>().0;
    assert_eq!(records.len(), 100);
    for (number, record) in records.iter().enumerate() {
        let (position, page) = bulk::decode_content(100, number as u32, record).expect("a record");
        assert_eq!(blake3::hash(page).as_bytes(), known[position as usize].as_bytes());
    }
    vec![(map, whole), (lookup, held), (contents, pages)]
}

/// Asks, and again as often as the daemon says that it has too much to do.
fn insist(port: u16, request: &[u8]) -> http::Answer {
    loop {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let answer = http::exchange(stream, request).expect("an answer");
        if answer.status != 503 {
            return answer;
        }
        wait::pause(Duration::from_secs(1));
    }
}

#[test]
fn a_thousand_clients_at_once_get_right_answers_and_cost_little_memory() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let scratch = Scratch::new("many");
    let (mut daemon, _guest, vm) = start(&scratch, 32);
    let questions = questions(&daemon, &vm);
    let (port, pid) = (daemon.port(), daemon.process().pid());
    let go = Barrier::new(CLIENTS);
    let grown = growth(pid, || {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (request, expected) = &questions[client % questions.len()];
                let go = &go;
                let run = move || {
                    go.wait();
                    let answer = insist(port, request);
                    assert_eq!(answer.status, 200, "{}", answer.head);
                    assert!(answer.body == *expected, "client {client} got another answer");
                };
                let small = std::thread::Builder::new().stack_size(256 << 10);
                small.spawn_scoped(scope, run).expect("a thread");
            }
        });
    });
    eprintln!("the daemon grew by {} KiB", grown >> 10);
    assert!(grown <= ROOM, "the daemon grew by {} KiB", grown >> 10);
}

#[test]
fn readers_that_stop_shut_nobody_out_and_hold_no_memory() {
    let scratch = Scratch::new("stop");
    let (mut daemon, mut guest, vm) = start(&scratch, 64);
    let map = request(&daemon, "GET", &format!("/v1/vms/{}/pages", vm.id), "application/json", &[]);
    let pid = daemon.process().pid();
    let mut stopped = Vec::new();
    let grown = growth(pid, || {
        for _ in 0..STOPPED {
            let mut stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
            stream.write_all(&map).expect("the daemon reads");
            stopped.push(stream);
        }
        // What they hold is older from now on.
        guest.write(16, 8000, 90_000);
        daemon.sync(&vm.id);
        let reader = UnixStream::connect(daemon.socket()).expect("the daemon listens");
        reader.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let answer = http::exchange(reader, &map).expect("a whole answer");
        assert_eq!(answer.status, 200, "a reader is told: {}", String::from_utf8_lossy(&answer.body));
        let pages = answer.json().as_array().map(Vec::len);
        assert_eq!(pages, Some(64 << 8), "all pages");
    });
    assert!(grown <= ROOM, "the daemon grew by {} KiB", grown >> 10);
    // A body that could not be completed never looks as if it were.
    let mut cut_off = 0;
    for mut stream in stopped {
        let mut answer = Vec::new();
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let _ = stream.read_to_end(&mut answer);
        let whole = answer.ends_with(b"0\r\n\r\n");
        assert!(!whole || answer.windows(4).any(|some| some == b"\n]\n\r"), "it ends in the middle");
        cut_off += usize::from(answer.starts_with(b"HTTP/1.1 200") && !whole);
    }
    assert!(cut_off > 0, "places were taken back");
}

#[test]
fn senders_that_stop_shut_nobody_out() {
    let scratch = Scratch::new("send");
    let (daemon, _guest, vm) = start(&scratch, 16);
    let questions = questions(&daemon, &vm);
    for (request, expected) in &questions[1..] {
        let stopped: Vec<_> = (0..STOPPED)
            .map(|_| {
                let mut stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
                stream.write_all(&request[..request.len() - 1]).expect("the daemon reads");
                stream
            })
            .collect();
        let sender = UnixStream::connect(daemon.socket()).expect("the daemon listens");
        sender.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let answer = http::exchange(sender, request).expect("a whole answer");
        assert_eq!(answer.status, 200, "a sender is told: {}", String::from_utf8_lossy(&answer.body));
        assert!(answer.body == *expected);
        drop(stopped);
    }
}
