//! Forwards what the programs log (aya-log) into tracing, for developers of hooks.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{Arc, Weak},
    time::Duration,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How often the thread looks whether it is still wanted.
const BEAT: Duration = Duration::from_millis(200);

/// Ends the forwarding when dropped.
#[derive(Debug)]
pub(super) struct Forwarding(
    #[expect(dead_code, reason = "held, so that the thread sees when it is dropped")] Arc<()>,
);

/// Receives the records and hands them on.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "memdexd::ebpf", "{}", record.args());
    }

    fn flush(&self) {}
}

/// Starts a thread that forwards until the returned value is dropped.
pub(super) fn forward(object: &mut Ebpf) -> io::Result<Forwarding> {
    let logger = EbpfLogger::init_with_logger(object, ToTracing).map_err(io::Error::other)?;
    let wanted = Arc::new(());
    let watched = Arc::downgrade(&wanted);
    std::thread::Builder::new().name("ebpf-log".into()).spawn(move || run(logger, &watched))?;
    Ok(Forwarding(wanted))
}

fn run(mut logger: EbpfLogger<ToTracing>, wanted: &Weak<()>) {
    let beat = Timespec { tv_sec: 0, tv_nsec: BEAT.as_nanos() as i64 };
    while wanted.strong_count() > 0 {
        // An interrupted wait is as good as a finished one.
        let _ = poll(&mut [PollFd::new(&logger.as_fd(), PollFlags::IN)], Some(&beat));
        logger.flush();
    }
}
