//! QEMU's own live migration, in the modes people use. Owns how each is switched on and how one run is measured.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use memdex_tests::{Qemu, qmp::Event, relay::Relay};
use serde_json::{Value, json};

use super::{
    Cap, How, Run, milliseconds,
    pair::{Pair, now, when},
};

/// A migration that takes longer does not converge.
const BOUND: Duration = Duration::from_secs(300);
/// How often QEMU is asked; what is measured comes from its events, which have times of their own.
const LOOK: Duration = Duration::from_millis(20);

/// A way in which QEMU migrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Plain pre-copy: one connection.
    Precopy,
    /// Two connections.
    Multifd,
    /// Two connections, each compressed with zstd.
    MultifdZstd,
    /// Pre-copy that sends differences of pages it sent before.
    Xbzrle,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Precopy, Self::Multifd, Self::MultifdZstd, Self::Xbzrle];

    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Precopy => &["events"],
            Self::Multifd | Self::MultifdZstd => &["events", "multifd"],
            Self::Xbzrle => &["events", "xbzrle"],
        }
    }

    fn parameters(self, cap: Cap) -> Value {
        let mut parameters = json!({"max-bandwidth": cap.bytes_per_second()});
        match self {
            Self::Precopy => {}
            Self::Multifd => parameters["multifd-channels"] = json!(2),
            Self::MultifdZstd => {
                parameters["multifd-channels"] = json!(2);
                parameters["multifd-compression"] = json!("zstd");
            }
            // As large as what the guest may rewrite between two rounds.
            Self::Xbzrle => parameters["xbzrle-cache-size"] = json!(256 << 20),
        }
        parameters
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Precopy => "QEMU pre-copy",
            Self::Multifd => "QEMU multifd, 2 channels",
            Self::MultifdZstd => "QEMU multifd + zstd, 2 channels",
            Self::Xbzrle => "QEMU xbzrle",
        })
    }
}

/// Moves the pair's guest once, by QEMU alone.
pub(crate) fn run(mode: Mode, cap: Cap, pair: &mut Pair) -> Run {
    let qemu = pair.version();
    let (source, mut destination, busy) = pair.ends();
    for end in [&mut *source, &mut destination] {
        switch(end, mode);
        end.qmp().run("migrate-set-parameters", &mode.parameters(cap));
    }
    let relay = Relay::to(listen(&mut destination)).expect("a relay between the ends");
    source.qmp().take_events();
    let begun = now();
    source.qmp().run("migrate", &json!({"uri": format!("tcp:{}", relay.address())}));
    let answer = wait(source);
    let stopped = when(&source.qmp().take_events(), "STOP").expect("the source stops the guest");
    destination.wait_for_status("running", BOUND);
    let resumed = resumed(&mut destination);
    let run = Run {
        how: How::Qemu(mode),
        qemu,
        cap,
        wire_bytes: relay.finish(),
        total_ms: milliseconds(begun, resumed),
        blackout_ms: milliseconds(stopped, resumed),
        reported_ms: answer["downtime"].as_f64().unwrap_or_default(),
        called_off: 0,
        busy,
    };
    pair.moved(destination);
    run
}

/// Switches on what the mode needs, and nothing else: the guest has moved before.
fn switch(end: &mut Qemu, mode: Mode) {
    let wanted = mode.capabilities();
    let all = ["events", "multifd", "xbzrle"];
    let states = all.map(|name| json!({"capability": name, "state": wanted.contains(&name)}));
    end.qmp().run("migrate-set-capabilities", &json!({"capabilities": states}));
}

/// Lets the destination listen on a port of the kernel's choice.
fn listen(destination: &mut Qemu) -> SocketAddr {
    destination.qmp().run("migrate-incoming", &json!({"uri": "tcp:127.0.0.1:0"}));
    let answer = destination.qmp().run("query-migrate", &json!({}));
    let address = &answer["socket-address"][0];
    let port = address["port"].as_str().and_then(|port| port.parse().ok());
    let port: u16 = port.unwrap_or_else(|| panic!("QEMU does not say where it listens: {answer}"));
    ([127, 0, 0, 1], port).into()
}

/// Waits for the end at the source; what QEMU says of it then.
fn wait(source: &mut Qemu) -> Value {
    let begun = Instant::now();
    loop {
        let answer = source.qmp().run("query-migrate", &json!({}));
        match answer["status"].as_str() {
            Some("completed") => return answer,
            Some("failed" | "cancelled") => panic!("QEMU's migration failed: {answer}"),
            _ => assert!(begun.elapsed() < BOUND, "QEMU's migration does not end: {answer}"),
        }
        std::thread::sleep(LOOK);
    }
}

fn resumed(destination: &mut Qemu) -> Duration {
    let events: Vec<Event> = destination.qmp().take_events();
    when(&events, "RESUME").unwrap_or_else(|| panic!("the destination resumes the guest: {events:?}"))
}
