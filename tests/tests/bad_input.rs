//! Protects the promise that whatever comes in (requests, peers, command lines, file names, a VMM that cuts off its own
//! RAM) gets one clear answer, that the other VMs go on, and that no wrong page is shown as current.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    time::Duration,
};

use memdex_tests::{
    Daemon, Qemu, Scratch, Tiny,
    contract::State,
    daemon, http, oracle,
    qemu::{Accelerator, Backend, Options},
    tiny,
};

const APPEAR: Duration = Duration::from_secs(5);

fn with_tcp(scratch: &Scratch) -> Daemon {
    Daemon::start_with(scratch, "memdexd", &daemon::Options { tcp: true, ..daemon::Options::default() })
}

/// One sentence for people on stderr, no panic.
fn expect_sentence(output: &std::process::Output) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{output:?}");
    assert!(words.trim().len() > 20 && words.trim().lines().count() <= 6, "{words}");
    assert!(!words.contains("panicked") && !words.contains("RUST_BACKTRACE"), "{words}");
}

#[test]
fn tcp_wants_the_token() {
    let scratch = Scratch::new("token");
    let daemon = with_tcp(&scratch);
    let token = fs::read_to_string(daemon.token_file()).expect("the daemon has made a token");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(daemon.token_file()).expect("the token file").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    assert!(token.trim().len() >= 32, "a token that can be guessed: {token:?}");

    let good = format!("Authorization: Bearer {}", token.trim());
    assert_eq!(http::tcp(daemon.port(), "GET", "/v1/vms", &[&good]).expect("an answer").status, 200);
    let longer = format!("{good}x");
    let shorter = &good[..good.len() - 1];
    for headers in [
        &[][..],
        &["Authorization: Bearer "],
        &["Authorization: Bearer wrong"],
        &[&longer],
        &[shorter],
        &["Authorization: Basic YTpi"],
        &["authorization: bearer \u{0}"],
    ] {
        for path in ["/v1/vms", "/v1/events", "/v1/vms/x/pages"] {
            let answer = http::tcp(daemon.port(), "GET", path, headers).expect("an answer");
            assert!(matches!(answer.status, 400 | 401), "{headers:?} {path}: {answer:?}");
            if answer.status == 401 {
                assert!(answer.head.contains("application/problem+json"), "{}", answer.head);
                assert_eq!(answer.json()["code"], "unauthorized");
            }
        }
    }
    let wrong = scratch.path("wrong");
    fs::write(&wrong, "0000000000000000000000000000000000000000\n").expect("a file");
    expect_sentence(&daemon::memdex(&daemon.tcp_url(), &wrong, &["vms"]));
}

#[test]
fn garbage_requests_are_refused_and_the_daemon_goes_on() {
    let scratch = Scratch::new("http");
    let daemon = with_tcp(&scratch);
    let token = fs::read_to_string(daemon.token_file()).expect("the daemon has made a token");
    let head = |method: &str, path: &str, more: &str| {
        let token = token.trim();
        format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        )
    };
    let requests: Vec<Vec<u8>> = vec![
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        vec![b'A'; 1 << 20],
        head("POST", "/v1/content/lookup", "Content-Length: 99999999999\r\n").into_bytes(),
        head("POST", "/v1/content/lookup", "Content-Length: 5\r\nContent-Type: application/json\r\n")
            .into_bytes(),
        (head("POST", "/v1/content/lookup", "Content-Length: 5\r\nContent-Type: application/json\r\n")
            + "[{[{[")
            .into_bytes(),
        (head("POST", "/v1/content/pages", "Transfer-Encoding: chunked\r\n") + "zz\r\n").into_bytes(),
        head("GET", "/v1/vms/%00%ff/pages?since=-1", "").into_bytes(),
        head("GET", "/v1/vms/..%2f..%2fetc/pages", "").into_bytes(),
        head("DELETE", "/v1/vms", "").into_bytes(),
        head("POST", "/v1/vms/none/sync", "Content-Length: 19\r\n").into_bytes(),
    ];
    for request in requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        // Half a request gets no answer until a time-out; do not wait for that here.
        if request.ends_with(b"\r\n\r\n") && shown.contains("content/lookup") && !shown.contains("9999") {
            let stream = std::net::TcpStream::connect(("127.0.0.1", daemon.port()));
            stream.expect("it listens").write_all(&request).expect("it reads");
            continue;
        }
        if let Ok(answer) = http::tcp_raw(daemon.port(), &request) {
            assert!((400..500).contains(&answer.status), "{shown}: {answer:?}");
        }
    }
    for (path, code) in [("/v1/vms/none", "vm_not_found"), ("/v1/nothing", "not_found")] {
        let answer = daemon.get(path);
        assert_eq!(answer.status, 404);
        assert_eq!(answer.json()["code"], code);
        assert!(answer.json()["detail"].as_str().is_some_and(|text| text.len() > 10));
    }
    assert_eq!(daemon.get("/healthz").status, 200);
    assert_eq!(daemon.memdex(&["pages", "none"]).status.code(), Some(3));
    assert_eq!(daemon.memdex(&["nonsense"]).status.code(), Some(2));
    let nobody = daemon::memdex("unix:/nonexistent.sock", daemon.token_file(), &["vms"]);
    assert_eq!(nobody.status.code(), Some(4));
    expect_sentence(&nobody);
}

/// A "host" that answers any connection with these bytes, then closes it or sends on without end.
fn bad_peer(answer: Vec<u8>, endless: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let mut sent = stream.write_all(&answer);
                while endless && sent.is_ok() {
                    sent = stream.write_all(&[0x41; 65536]);
                }
            });
        }
    });
    format!("tcp://127.0.0.1:{port}")
}

#[test]
fn a_bad_peer_costs_one_failed_diff() {
    let scratch = Scratch::new("peer");
    let mut guest = Tiny::start(&scratch, &scratch.name("t"));
    guest.write(1, 1000, 1);
    let daemon = with_tcp(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    let ok = "HTTP/1.1 200 OK\r\n";
    let peers = [
        (bad_peer(b"\x00\x01\x02garbage".to_vec(), false), "garbage"),
        (bad_peer(Vec::new(), false), "nothing"),
        (bad_peer(format!("{ok}Content-Length: 4\r\n\r\nABCD").into_bytes(), false), "wrong size"),
        (
            bad_peer(
                format!("{ok}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}").into_bytes(),
                false,
            ),
            "wrong JSON",
        ),
        (bad_peer(format!("{ok}\r\n").into_bytes(), true), "endless body"),
        (bad_peer(format!("{ok}X: ").into_bytes(), true), "endless header"),
        (bad_peer(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_vec(), false), "refusal"),
        (format!("tcp://127.0.0.1:{}", daemon::free_port()), "nobody"),
        ("tcp://256.1.2.3:1".to_owned(), "no address"),
        ("gopher://x".to_owned(), "no scheme of ours"),
    ];
    for (url, what) in peers {
        let output = daemon.memdex(&["diff", &vm.id, "--to", &url, "-o", "json"]);
        expect_sentence(&output);
        assert!(output.stdout.is_empty(), "{what}: {}", String::from_utf8_lossy(&output.stdout));
        eprintln!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    oracle::compare(&daemon, &vm).expect_exact("after all that");
}

#[test]
fn a_socket_path_that_is_taken_is_left_alone() {
    let scratch = Scratch::new("sock");
    let refuse = |name: &str| {
        let mut second = Daemon::launch(&scratch, name, &daemon::Options::default());
        let (status, _) = second.process().wait(Duration::from_secs(5));
        assert!(!status.success());
        assert!(second.log().contains(name), "the message names no path: {}", second.log());
    };
    let first = Daemon::start_with(&scratch, "taken", &daemon::Options::default());
    refuse("taken");
    assert_eq!(first.get("/healthz").status, 200);
    drop(first);

    let file = scratch.path("file.sock");
    fs::write(&file, "not a socket").expect("a file");
    refuse("file");
    assert_eq!(fs::read(&file).expect("it is still there"), b"not a socket");

    let other = UnixListener::bind(scratch.path("other.sock")).expect("a socket");
    refuse("other");
    drop(other);
    // What a killed daemon leaves behind is no obstacle.
    let mut killed = Daemon::start_with(&scratch, "stale", &daemon::Options::default());
    killed.kill();
    assert!(killed.socket().exists());
    drop(Daemon::start_with(&scratch, "stale", &daemon::Options::default()));
}

#[test]
fn a_vmm_that_cuts_off_its_ram_hurts_only_itself() {
    let scratch = Scratch::new("cut");
    let path = scratch.shm("ram");
    let options = tiny::Options { mib: 32, ram: tiny::Ram::File(path.clone()), ..tiny::Options::default() };
    let mut victim = Tiny::start_with(&scratch, &scratch.name("v"), &options);
    victim.write(1, 8000, 1);
    let mut other = Tiny::start(&scratch, &scratch.name("o"));
    other.write(1, 500, 2);
    let mut daemon = Daemon::start(&scratch);
    let (bystander, _) = daemon.wait_for_vm(other.pid(), APPEAR);
    let (vm, _) = daemon.wait_for_vm(victim.pid(), APPEAR);
    for pages in [6000, 2000, 8192, 100] {
        victim.run(&format!("truncate 0 {pages}"));
        let output = daemon.memdex(&["sync", &vm.id, "--timeout", "3s"]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
        assert!(daemon.process().is_running());
        // The truth now: zeros from the end of the file. Whatever the map says of those pages, it must not be that they
        // hold something.
        let wrong = daemon
            .pages(&vm.id)
            .into_iter()
            .filter(|page| page.page >= pages && page.state == State::Current);
        assert_eq!(wrong.count(), 0, "pages beyond the end of a RAM file of {pages} pages shown as current");
        other.write(1, 500, 3 + pages as u32);
        daemon.sync(&bystander.id);
        oracle::compare(&daemon, &bystander).expect_exact("the other VM");
    }
}

#[test]
fn a_hostile_name_is_shown_harmlessly() {
    let scratch = Scratch::new("name");
    let hostile = format!("{}\u{1b}[31m\n\"}},{{\"id\":\"x\u{202e}../../etc", scratch.name("h"));
    let mut options = Options::firmware(64, Backend::Memfd, Accelerator::Tcg);
    options.name = Some(format!("guest={}", hostile.replace(',', ",,")));
    let qemu = Qemu::start(&scratch, "hostile", &options);
    let daemon = Daemon::start_with(
        &scratch,
        "memdexd",
        &daemon::Options { include: vec![format!("{}*", scratch.name("h"))], ..daemon::Options::default() },
    );
    let (vm, _) = daemon.wait_for_vm(qemu.pid(), APPEAR);
    assert!(!vm.name.chars().any(char::is_control), "{:?}", vm.name);
    assert_eq!(daemon.vms().len(), 1);
    let table = daemon.succeed(&["-o", "table", "vms"]);
    assert!(!table.contains(&0x1b), "{}", String::from_utf8_lossy(&table));
    daemon.sync(&vm.id);
    assert_eq!(daemon.get("/metrics").status, 200);
}

/// A RAM file on a disk can't be write-protected: the VM is indexed all the same, and it says so.
#[test]
fn ram_on_a_disk_is_advisory_and_says_why() {
    let scratch = Scratch::new("disk");
    let path = scratch.path("ram");
    let options = tiny::Options { ram: tiny::Ram::File(path), ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("d"), &options);
    guest.write(1, 1000, 1);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    let vm = daemon.vm_of(vm.pid).expect("it runs");
    assert_eq!(vm.tracking, "advisory");
    assert!(vm.coverage.iter().all(|region| region.status == "advisory"), "{:?}", vm.coverage);
    let reason = vm.coverage[0].reason.as_deref().unwrap_or_default();
    assert!(reason.len() > 20, "no reason: {:?}", vm.coverage);
    for round in 0..3 {
        guest.write(500, 300, round * 777);
        daemon.sync(&vm.id);
        oracle::compare(&daemon, &vm).expect_exact("sync reads everything again");
    }
}

/// Many VMMs lock themselves into a filter that kills on any call they never make; the injected one is such a call.
/// Where the filter can be suspended for it, tracking is exact; where not, the VM says why it isn't.
#[test]
fn a_vmm_behind_a_deadly_seccomp_filter_survives() {
    let scratch = Scratch::new("sec");
    let options =
        tiny::Options { arguments: vec!["--seccomp".into(), "kill".into()], ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("s"), &options);
    guest.write(1, 1000, 1);
    let daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    std::thread::sleep(Duration::from_millis(500));
    assert!(guest.is_running(), "the VMM was killed by its own filter");
    let vm = daemon.vm_of(vm.pid).expect("it runs");
    let explained = vm.advisory_reasons.iter().any(|reason| reason.contains("seccomp"));
    assert!(vm.tracking == "exact" || explained, "{:?}", vm.advisory_reasons);
    for round in 0..3 {
        guest.write(500, 300, round * 777);
        daemon.sync(&vm.id);
        oracle::compare(&daemon, &vm).expect_exact("sync reads everything again");
    }
}
