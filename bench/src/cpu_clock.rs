//! Processor time of another process, to the nanosecond: its kernel clock, which counts threads that have ended too.
#![expect(unsafe_code, reason = "no safe wrapper reads the clock of another process")]

use std::time::Duration;

/// What all threads of a process have used since it began, those that have ended included.
pub(crate) fn used(pid: u32) -> Duration {
    let pid = libc::pid_t::try_from(pid).expect("a pid");
    let mut clock = 0;
    // SAFETY: writes to the one integer it is given, and nothing else.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    assert_eq!(error, 0, "the process {pid} runs");
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the one structure it is given, and nothing else.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "the process {pid} runs");
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("less than a second"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_ended_thread_used_stays() {
        let before = used(std::process::id());
        std::thread::spawn(|| {
            let begun = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            while rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_nsec - begun.tv_nsec
                < 20_000_000
            {
                std::hint::spin_loop();
            }
        })
        .join()
        .unwrap();
        assert!(used(std::process::id()) - before >= Duration::from_millis(20));
    }
}
