//! The injected call leaves no trace, whatever the VMM is doing.
#![expect(unsafe_code, reason = "plain system calls of the victims, on local variables")]

use std::{
    ptr::null_mut,
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use indexer::watch::{
    inject::{self, Call},
    userfault::{self, Origin},
};

use crate::victim::{Shared, Victim, now};

pub(crate) const GETPID: Call = Call { number: libc::SYS_getpid, arguments: [0; 3] };

/// Injects `times` calls and says how long the victim stood at most and in the median.
pub(crate) fn hammer(victim: &Victim, times: usize) -> (Duration, Duration) {
    let process = victim.process();
    let mut stops: Vec<Duration> = (0..times)
        .map(|_| {
            let returned = inject::call(&process, GETPID).unwrap();
            assert_eq!(returned.value, Ok(u64::try_from(victim.pid).unwrap()));
            returned.stopped
        })
        .collect();
    stops.sort();
    (stops[times / 2], stops[times - 1])
}

pub(crate) fn milliseconds(n: i64) -> libc::timespec {
    libc::timespec { tv_sec: n / 1000, tv_nsec: n % 1000 * 1_000_000 }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Runs `wait` (should take 10 ms and succeed) again and again while calls are injected.
fn waits_undisturbed(wait: impl Fn(&Shared)) {
    let victim = Victim::spawn(|shared| {
        while !shared.finished() {
            let begun = now();
            wait(shared);
            shared.check(now() - begun >= 9_900, 99);
            shared.rounds.fetch_add(1, SeqCst);
        }
    });
    victim.await_rounds(2);
    hammer(&victim, 200);
    victim.await_rounds(victim.shared.rounds.load(SeqCst) + 2);
    victim.finish_well();
}

#[test]
fn nanosleep_goes_on() {
    waits_undisturbed(|shared| {
        // SAFETY: valid pointers, as in all victims of this file.
        let r = unsafe { libc::nanosleep(&milliseconds(10), null_mut()) };
        shared.check(r == 0, 1);
    });
}

#[test]
fn poll_goes_on() {
    // SAFETY: no descriptors.
    waits_undisturbed(|shared| shared.check(unsafe { libc::poll(null_mut(), 0, 10) } == 0, 1));
}

#[test]
fn ppoll_goes_on_with_its_own_signal_mask() {
    // SAFETY: plain calls on local variables.
    waits_undisturbed(|shared| unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut mask, libc::SIGUSR2);
        shared.check(libc::ppoll(null_mut(), 0, &milliseconds(10), &raw const mask) == 0, 1);
        let mut after: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut after);
        shared.check(libc::sigismember(&raw const after, libc::SIGUSR2) == 0, 2);
    });
}

#[test]
fn epoll_wait_does_not_end_early() {
    // The EINTR that epoll_wait answers to a mere stop must not show.
    // SAFETY: no memory is touched.
    let epoll = unsafe { libc::epoll_create1(0) };
    // SAFETY: `event` is a local variable with room for the one event that is asked for.
    waits_undisturbed(|shared| unsafe {
        let mut event: libc::epoll_event = std::mem::zeroed();
        let r = libc::epoll_wait(epoll, &raw mut event, 1, 10);
        shared.check(r == 0, 100 + u64::from(errno().cast_unsigned()));
    });
}

#[test]
fn futex_wait_goes_on() {
    // SAFETY: word and time are local variables that live through the call.
    waits_undisturbed(|shared| unsafe {
        let word = 0_u32;
        let time = milliseconds(10);
        let r = libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAIT, 0, &raw const time);
        shared.check(r == -1 && errno() == libc::ETIMEDOUT, 1);
    });
}

#[test]
fn a_long_sleep_ends_in_time() {
    let victim = Victim::spawn(|shared| {
        shared.rounds.store(1, SeqCst);
        let begun = now();
        // SAFETY: the time is a temporary that lives through the call.
        shared.check(unsafe { libc::nanosleep(&milliseconds(1500), null_mut()) } == 0, 1);
        shared.result.store(now() - begun, SeqCst);
    });
    victim.await_rounds(1);
    hammer(&victim, 200);
    let shared = victim.shared;
    victim.finish_well();
    let slept = shared.result.load(SeqCst);
    assert!((1_500_000..1_900_000).contains(&slept), "slept {slept} µs");
}

#[test]
fn a_blocked_read_gets_every_byte() {
    let mut ends = [0; 2];
    // SAFETY: there is room for both ends.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the byte is a local variable; the victim's copy of the writing end is used by nobody else.
    let victim = Victim::spawn(|shared| unsafe {
        libc::close(ends[1]);
        let mut expected = 0_u8;
        loop {
            let mut byte = 0_u8;
            match libc::read(ends[0], (&raw mut byte).cast(), 1) {
                0 => return,
                1 => shared.check(byte == expected, 1),
                _ => shared.check(false, 2),
            }
            expected = expected.wrapping_add(1);
            shared.rounds.fetch_add(1, SeqCst);
        }
    });
    let process = victim.process();
    for n in 0..200_u8 {
        assert!(inject::call(&process, GETPID).is_ok());
        // SAFETY: `n` is a local variable of one byte.
        assert_eq!(unsafe { libc::write(ends[1], (&raw const n).cast(), 1) }, 1);
        if n % 3 == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    victim.await_rounds(200);
    // SAFETY: nobody uses it afterwards.
    unsafe { libc::close(ends[1]) };
    victim.finish_well();
}

/// Integer and floating-point work that keeps everything in registers.
pub(crate) fn compute(rounds: u64) -> u64 {
    let (mut x, mut f) = (1_u64, 1.0_f64);
    for n in 0..rounds {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n);
        f = f * 1.000_000_1 + 0.25 / (n + 1) as f64;
    }
    x ^ f.to_bits()
}

#[test]
fn a_computation_in_user_code_is_not_disturbed() {
    const ROUNDS: u64 = 200_000;
    let expected = compute(ROUNDS);
    let victim = Victim::spawn(move |shared| {
        while !shared.finished() {
            shared.check(compute(std::hint::black_box(ROUNDS)) == expected, 1);
            shared.rounds.fetch_add(1, SeqCst);
        }
    });
    victim.await_rounds(2);
    hammer(&victim, 200);
    victim.await_rounds(victim.shared.rounds.load(SeqCst) + 2);
    victim.finish_well();
}

static mut COUNTER: *const Shared = std::ptr::null();

extern "C" fn count(_: i32) {
    // SAFETY: set before the handler is installed.
    unsafe { (*COUNTER).signals.fetch_add(1, SeqCst) };
}

/// A realtime signal a millisecond, beside a 1 kHz timer; realtime signals are queued, so each one counts.
fn signals_are_not_lost(body: impl Fn(&Shared)) {
    let signal = libc::SIGRTMIN() + 3;
    // SAFETY: all pointers are to local variables that live through the calls; `COUNTER` is set before a handler can read it, and the victim has one thread.
    let mut victim = Victim::spawn(|shared| unsafe {
        COUNTER = shared;
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as extern "C" fn(i32) as usize;
        libc::sigaction(signal, &raw const action, null_mut());
        extern "C" fn nothing(_: i32) {}
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, null_mut());
        let millisecond = libc::timeval { tv_sec: 0, tv_usec: 1000 };
        let timer = libc::itimerval { it_interval: millisecond, it_value: millisecond };
        libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &raw const timer, 0);
        // SIGTRAP blocked and ignored: neither may change.
        action.sa_sigaction = libc::SIG_IGN;
        libc::sigaction(libc::SIGTRAP, &raw const action, null_mut());
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut mask, libc::SIGTRAP);
        libc::sigaddset(&raw mut mask, libc::SIGWINCH);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, null_mut());
        while !shared.finished() {
            body(shared);
            let mut after: libc::sigset_t = std::mem::zeroed();
            libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut after);
            let same = (1..=64)
                .all(|s| libc::sigismember(&raw const after, s) == libc::sigismember(&raw const mask, s));
            shared.check(same, 50);
            let mut trap: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGTRAP, std::ptr::null(), &raw mut trap);
            shared.check(trap.sa_sigaction == libc::SIG_IGN, 51);
            shared.rounds.fetch_add(1, SeqCst);
        }
    });
    victim.await_rounds(3);
    let pid = victim.pid;
    let sender = std::thread::spawn(move || {
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < Duration::from_millis(1200) {
            let value = libc::sigval { sival_ptr: null_mut() };
            // SAFETY: no memory is touched.
            sent += u64::from(unsafe { libc::sigqueue(pid, signal, value) } == 0);
            std::thread::sleep(Duration::from_millis(1));
        }
        sent
    });
    let mut cycles = 0;
    while !sender.is_finished() {
        hammer(&victim, 10);
        cycles += 10;
    }
    let sent = sender.join().unwrap();
    println!("{sent} signals, {cycles} calls");
    let begun = Instant::now();
    while victim.shared.signals.load(SeqCst) < sent && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(victim.shared.signals.load(SeqCst), sent);
    assert_eq!(victim.shared.wrong.load(SeqCst), 0);
    victim.kill();
}

#[test]
fn no_signal_is_lost_in_user_code() {
    let expected = compute(2000);
    signals_are_not_lost(move |shared| {
        shared.check(compute(std::hint::black_box(2000)) == expected, 1);
    });
}

#[test]
fn no_signal_is_lost_in_a_wait() {
    signals_are_not_lost(|shared| {
        // SAFETY: no descriptors are passed.
        let r = unsafe { libc::poll(null_mut(), 0, 5) };
        shared.check(r == 0 || errno() == libc::EINTR, 1);
    });
}

#[test]
fn userfaultfd_of_an_unprivileged_process_is_made_once_and_reused() {
    // SAFETY: no memory is touched.
    let victim = Victim::spawn(|shared| unsafe {
        shared.check(libc::setresgid(65534, 65534, 65534) == 0, 1);
        shared.check(libc::setresuid(65534, 65534, 65534) == 0, 2);
        shared.rounds.store(1, SeqCst);
        while !shared.finished() {
            libc::usleep(1000);
        }
    });
    victim.await_rounds(1);
    let first = userfault::attach(victim.id()).unwrap();
    println!("{:?}", first.report());
    assert_eq!(first.report().origin, Origin::Injected);
    let token = first.token().unwrap();
    drop(first);
    let second = userfault::reattach(victim.id(), token).unwrap().unwrap();
    assert_eq!(second.report().origin, Origin::Reused);
    victim.finish_well();
}
