//! QEMU's monitor protocol, synchronous and with bounded waits. Owns one connection; QEMU serves one client at a time.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

/// Longest wait for an answer.
const BOUND: Duration = Duration::from_secs(20);

/// Most events that are kept for whoever asks; older ones are forgotten.
const EVENTS: usize = 256;

/// Something QEMU reported by itself, as `STOP` or `RESUME`.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// When, by QEMU's clock: time since 1970, in microseconds' grain.
    pub at: Duration,
    /// What it says beside that.
    pub data: Value,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: VecDeque<Event>,
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
        let mut qmp = Self { stream: BufReader::new(stream), events: VecDeque::new() };
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
            self.keep(&mut answer);
        }
    }

    /// Events that came before the answers to commands so far, oldest first; each is given once. QEMU sends them in order,
    /// so any command that is run first brings those that are due.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// The events that are left of a QEMU that has ended.
    pub fn last_events(&mut self) -> Vec<Event> {
        while let Ok(mut message) = self.read() {
            self.keep(&mut message);
        }
        self.take_events()
    }

    /// Anything that is no answer is an event.
    fn keep(&mut self, message: &mut Value) {
        let part = |name: &str| message["timestamp"][name].as_u64().unwrap_or(0);
        let at = Duration::from_secs(part("seconds")) + Duration::from_micros(part("microseconds"));
        if let Some(name) = message["event"].as_str().map(str::to_owned) {
            if self.events.len() == EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(Event { name, at, data: message["data"].take() });
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
