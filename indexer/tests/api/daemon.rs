//! memdexd as a program: command line, signals, refusals.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::support::free_port;

fn memdexd(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memdexd"));
    // A name that no VM has: these daemons are not to touch anything.
    command.args(arguments).args(["--include", "no-such-vm"]).env("MEMDEX_TOKEN_FILE", folder.join("token"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(folder: &Path, arguments: &[&str]) -> Child {
    let mut child = memdexd(folder, arguments).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(folder.join("d.sock")).is_err() {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "it does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

fn stop(child: Child) -> (Duration, Output) {
    let start = Instant::now();
    signal(&child, rustix::process::Signal::TERM);
    let output = child.wait_with_output().unwrap();
    (start.elapsed(), output)
}

fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let mut child = memdexd(folder, arguments).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code().is_some_and(|code| code != 0), "{arguments:?} was accepted");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn sigterm_ends_it_within_five_seconds_with_streams_open_and_removes_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("d.sock");
    let url = format!("unix:{}", socket.display());
    let tcp = format!("tcp://127.0.0.1:{}", free_port());
    let daemon = start(folder.path(), &["--listen", &url, "--listen", &tcp]);
    let mut events = UnixStream::connect(&socket).unwrap();
    events.write_all(b"GET /v1/events HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut head = [0; 12];
    events.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(fs::read_to_string(folder.path().join("token")).unwrap().trim().len(), 64);

    let second = refusal(folder.path(), &["--listen", &url]);
    assert!(second.contains("another memdexd is serving"), "{second}");

    let (took, output) = stop(daemon);
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && took < Duration::from_secs(5), "{took:?} {log}");
    assert!(!log.contains('\u{1b}'), "no colours without a terminal: {log}");
    assert!(!socket.exists());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("unix:{}", folder.path().join("d.sock").display());
    let mut daemon = start(folder.path(), &["--listen", &url]);
    // A client that never finishes its request keeps the first stop busy for a while.
    let mut busy = UnixStream::connect(folder.path().join("d.sock")).unwrap();
    busy.write_all(b"POST /v1/content/lookup HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n").unwrap();
    busy.write_all(b"content-type: application/json\r\n\r\n{").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    signal(&daemon, rustix::process::Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    signal(&daemon, rustix::process::Signal::INT);
    let status = daemon.wait().unwrap();
    // An orderly stop would have ended with 0; and not before the client above had had its time.
    assert_eq!(status.code(), Some(130), "{status:?}");
}

#[test]
fn what_cannot_work_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let config = folder.path().join("c.toml");
    let says = |arguments: &[&str], words: &str| {
        let text = refusal(folder.path(), arguments);
        assert!(text.contains(words), "{arguments:?}: {text}");
    };
    says(&["--listen", "tcp://0.0.0.0:7373"], "tls://");
    says(&["--listen", "tls://127.0.0.1:7373"], "certificate");
    says(&["--listen", "/run/x"], "unix:/run/x");
    says(&["--listen", &format!("unix:{}", file.display())], "not a socket");
    says(&["--peer", "x"], "NAME=URL");
    says(&["--include", "["], "include");
    says(&["--log", "a=b=c"], "filter");
    says(&["--config", "/nonexistent"], "--config");
    fs::write(&config, "lisen = []").unwrap();
    says(&["--config", config.to_str().unwrap()], "lisen");
    fs::write(
        &config,
        "listen = ['tls://127.0.0.1:1']\n[tls]\ncertificate = '/nonexistent'\nkey = '/nonexistent'",
    )
    .unwrap();
    says(&["--config", config.to_str().unwrap()], "/nonexistent");
    let token = folder.path().join("token");
    fs::write(&token, "open").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    says(&["--listen", &format!("tcp://127.0.0.1:{}", free_port())], "chmod 600");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn the_help_teaches() {
    let output = Command::new(env!("CARGO_BIN_EXE_memdexd")).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for words in ["Examples:", "memdex vms", "--listen", "[tls]", "ssh -L"] {
        assert!(text.contains(words), "{words}");
    }
}
