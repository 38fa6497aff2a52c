//! A QEMU of which every moment is known in which its guest could run: from QEMU's own events and their times.
//!
//! QEMU says `STOP` after the last vCPU stands still and `RESUME` before the first one runs, so what is noted is never too short.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memdex_tests::{Qemu, Scratch, qemu::Options, qmp::Event};
use serde_json::json;

/// See the module.
pub struct Watched {
    pub qemu: Qemu,
    pub name: String,
    /// From when until when its guest could run; without an end if it still can.
    spans: Vec<(Duration, Option<Duration>)>,
    gone: bool,
    killed: Option<Duration>,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Watched {
    /// Starts a QEMU, and its daemon is not waited for.
    pub fn start(scratch: &Scratch, name: &str, options: &Options) -> Self {
        let qemu = Qemu::start(scratch, name, options);
        let spans = if options.incoming { Vec::new() } else { vec![(Duration::ZERO, None)] };
        Self { qemu, name: name.to_owned(), spans, gone: false, killed: None }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.killed = Some(now());
        self.qemu.kill();
        self.look();
    }

    /// Takes in what QEMU has said. Whether the guest runs now.
    pub fn look(&mut self) -> bool {
        if self.gone {
            return false;
        }
        let status = self.qemu.qmp().try_run("query-status", &json!({}));
        let events = match &status {
            Ok(_) => self.qemu.qmp().take_events(),
            Err(_) => self.qemu.qmp().last_events(),
        };
        events.iter().for_each(|event| self.note(event));
        if let Ok(status) = status {
            return status["status"] == "running";
        }
        self.gone = true;
        if let Some((_, end @ None)) = self.spans.last_mut() {
            *end = Some(self.killed.unwrap_or_else(now));
        }
        false
    }

    fn note(&mut self, event: &Event) {
        match (event.name.as_str(), self.spans.last_mut()) {
            ("STOP", Some((_, end @ None))) => *end = Some(event.at),
            ("RESUME", None | Some((_, Some(_)))) => self.spans.push((event.at, None)),
            _ => {}
        }
    }

    /// Fails if somebody stops the guest now and then: a throttle does so every tenth of a second.
    pub fn is_left_alone(&mut self) {
        assert!(self.look(), "the guest runs");
        let before = self.spans.len();
        // What is not to happen cannot be waited for.
        std::thread::sleep(Duration::from_millis(500));
        assert!(self.look() && self.spans.len() == before, "the guest is still held back: {:?}", self.spans);
    }

    /// Whether QEMU has ended.
    pub fn is_gone(&mut self) -> bool {
        self.look();
        self.gone
    }

    /// Whether the guest has ever run here.
    pub fn has_run(&mut self) -> bool {
        self.look();
        !self.spans.is_empty()
    }

    /// Fails if there was a moment in which both could run.
    pub fn never_at_once(&mut self, other: &mut Self) {
        self.look();
        other.look();
        for (begin, end) in &self.spans {
            for (other_begin, other_end) in &other.spans {
                let apart =
                    end.is_some_and(|end| end <= *other_begin) || other_end.is_some_and(|end| end <= *begin);
                assert!(
                    apart,
                    "the guest ran twice: {} {:?} and {} {:?}",
                    self.name, self.spans, other.name, other.spans
                );
            }
        }
    }
}
