//! QEMU's monitor protocol, synchronous and with bounded waits. Owns one connection; QEMU serves one client at a time.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

/// Longest wait for an answer.
const BOUND: Duration = Duration::from_secs(20);

/// A connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode; None if QEMU does not listen yet.
    ///
    /// # Panics
    /// If what listens there is no monitor.
    #[must_use]
    pub fn connect(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(BOUND)).expect("a time-out can be set");
        let mut qmp = Self { stream: BufReader::new(stream) };
        let greeting = qmp.read().expect("QEMU greets");
        assert!(greeting.get("QMP").is_some(), "no monitor: {greeting}");
        qmp.run("qmp_capabilities", &json!({}));
        Some(qmp)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// QEMU's error object, or text if the connection is lost.
    pub fn try_run(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        // In one piece: QEMU acts at the last brace, and may have quit before a newline that comes after it.
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|error| json!(error.to_string()))?;
        loop {
            let mut answer = self.read().map_err(|error| json!(error.to_string()))?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get_mut("error") {
                return Err(error.take());
            }
            // Anything else is an event.
        }
    }

    /// Runs a command that must succeed.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_run(command, arguments).unwrap_or_else(|error| panic!("QMP {command} {arguments}: {error}"))
    }

    fn read(&mut self) -> std::io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(Into::into)
    }
}
