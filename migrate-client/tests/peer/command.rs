//! Runs the `memdex` command against a host.

use std::process::{Command, Output, Stdio};

pub fn memdex(host: &impl ToString) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memdex"));
    command.env_clear().env("MEMDEX_HOST", host.to_string()).stdin(Stdio::null());
    command
}

/// Runs it; exit code, stdout and stderr.
pub fn run(host: &impl ToString, arguments: &[&str]) -> (i32, String, String) {
    let output = memdex(host).args(arguments).output().unwrap();
    told(&output)
}

pub fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

pub fn done(host: &impl ToString, arguments: &[&str]) -> String {
    let (code, out, err) = run(host, arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    out
}

/// Whether something in it could steer a terminal.
pub fn steers(text: &str) -> bool {
    text.contains(['\u{1b}', '\u{9b}', '\r', '\u{202e}'])
}
