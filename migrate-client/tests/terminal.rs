//! The `memdex` command at a terminal: `script(1)` gives it one.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as expected")]

mod peer;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use peer::good::GoodHost;

const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";

/// A shell at a terminal of its own that says its pid, runs `memdex` and then shows the terminal's state.
fn at_terminal(host: &GoodHost, arguments: &str) -> Child {
    let memdex = env!("CARGO_BIN_EXE_memdex");
    let line = format!(
        "stty rows 24 cols 120; {memdex} {arguments} & echo pid $!; fg >/dev/null; c=$?; stty -a; exit $c"
    );
    // Nothing here may hang: a key that is lost would make it wait for ever.
    Command::new("timeout")
        .args([
            "--foreground",
            "-k",
            "1",
            "20",
            "script",
            "-qefc",
            &format!("bash -mc '{line}'"),
            "/dev/null",
        ])
        .env("MEMDEX_HOST", host.unix.to_string())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the screen shows something, does what the test wants, and returns exit code and everything shown.
fn after(mut child: Child, word: &str, act: impl FnOnce(&mut Child, &str)) -> (i32, String) {
    let mut shown = Vec::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    while !String::from_utf8_lossy(&shown).contains(word) {
        let piece = output.fill_buf().unwrap();
        assert!(!piece.is_empty(), "{}", String::from_utf8_lossy(&shown));
        let length = piece.len();
        shown.extend_from_slice(piece);
        output.consume(length);
    }
    act(&mut child, &String::from_utf8_lossy(&shown));
    output.read_to_end(&mut shown).unwrap();
    (child.wait().unwrap().code().unwrap(), String::from_utf8_lossy(&shown).into_owned())
}

fn types(keys: &'static [u8]) -> impl FnOnce(&mut Child, &str) {
    move |child, _| child.stdin.as_mut().unwrap().write_all(keys).unwrap()
}

fn kills(signal: &'static str) -> impl FnOnce(&mut Child, &str) {
    move |_, shown| {
        let pid = shown.split("pid ").nth(1).unwrap().split_whitespace().next().unwrap();
        assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
    }
}

fn assert_given_back(shown: &str) {
    assert_eq!(shown.matches(TAKEN).count(), 1, "{shown:?}");
    assert!(shown.rfind(GIVEN_BACK) > shown.rfind(TAKEN), "{shown:?}");
    assert!(shown.contains("\nisig icanon iexten echo "), "{shown:?}");
    assert!(!shown.contains("\u{1b}[31m"), "a VM's name steers the terminal: {shown:?}");
}

#[test]
fn top_gives_the_terminal_back_on_every_way_out() {
    let host = GoodHost::new();
    for (act, code) in [
        (Box::new(types(b"q")) as Box<dyn FnOnce(&mut Child, &str)>, 0),
        (Box::new(types(b"\x1b[A\x1b[Bxq")), 0),
        (Box::new(types(b"\x03")), 130),
        (Box::new(kills("-TERM")), 130),
        (Box::new(kills("-INT")), 130),
    ] {
        let (actual, shown) = after(at_terminal(&host, "top --interval 100ms"), "q leaves", act);
        assert_eq!(actual, code, "{shown:?}");
        assert!(shown.contains("4 VMs") && shown.contains("vm1"), "{shown:?}");
        assert_given_back(&shown);
    }
    let (code, shown) = after(at_terminal(&host, "top -n 3 --interval 100ms"), "q leaves", |_, _| {});
    assert_eq!(code, 0);
    assert_given_back(&shown);
}

#[test]
fn top_waits_for_a_host_that_is_restarted_and_never_for_one_that_is_not_there() {
    let host = GoodHost::new();
    let socket = host.unix.socket_path().unwrap().to_owned();
    let child = at_terminal(&host, "top --interval 100ms");
    let (code, shown) = after(child, "4 VMs", |child, _| {
        std::fs::remove_file(socket).unwrap();
        drop(host);
        std::thread::sleep(Duration::from_secs(1));
        child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    });
    assert_eq!(code, 0);
    assert!(shown.contains("still trying, q leaves"), "{shown:?}");
    assert_given_back(&shown);

    let gone = GoodHost::new();
    std::fs::remove_file(gone.unix.socket_path().unwrap()).unwrap();
    let (code, shown) = after(at_terminal(&gone, "top"), "cannot be reached", |_, _| {});
    assert_eq!(code, 4);
    assert!(!shown.contains(TAKEN), "{shown:?}");
}

#[test]
fn a_bar_is_drawn_for_a_terminal_and_taken_away() {
    let host = GoodHost::new();
    let (code, shown) = after(at_terminal(&host, "sync vm1"), "4711", |_, _| {});
    assert_eq!(code, 0);
    assert!(shown.contains("sync vm1") && shown.contains('%'), "{shown:?}");
    let (_, shown) = after(at_terminal(&host, "sync vm1 --progress none"), "4711", |_, _| {});
    assert!(!shown.contains('%'), "{shown:?}");
}

#[test]
fn a_migration_draws_a_bar_and_ctrl_c_calls_it_off() {
    let host = GoodHost::new();
    let child = at_terminal(&host, "migrate vm1 --to endless");
    let (code, shown) = after(child, "iteration 3", types(b"\x03"));
    assert_eq!(code, 130, "{shown:?}");
    for word in [
        "migrate vm1",
        "300 new",
        "copying",
        "100.0 MiB/s",
        "dirty rate",
        "guest held back 20 %",
        "being called off",
    ] {
        assert!(shown.contains(word), "{word}: {shown:?}");
    }
    assert!(shown.contains("to endless: aborted") && shown.contains("\nisig icanon"), "{shown:?}");
    assert!(!shown.contains("\u{1b}[31m") && !shown.contains('\u{9b}'), "{shown:?}");

    let child = at_terminal(&host, "migrate vm1 --to host-2 --progress none");
    let (code, shown) = after(child, "completed", |_, _| {});
    assert_eq!(code, 0);
    assert!(!shown.contains("remaining"), "{shown:?}");
}
