//! Attaching to a VMM in every condition: filtered, stopped, traced, dying, foreign.
#![expect(unsafe_code, reason = "plain system calls of the victims, on local variables")]

use std::{ptr::null_mut, sync::atomic::Ordering::SeqCst, time::Duration};

use indexer::watch::{
    inject::{self, Call, InjectError},
    userfault::{self, AttachError, Origin},
};

use crate::{
    attach::{GETPID, compute, hammer, milliseconds},
    victim::{Shared, Victim},
};

/// Allows what the victim's loop takes and kills for everything else, restart_syscall included.
///
/// # Safety
/// The process makes only calls that the filter allows from here on.
unsafe fn install_filter() -> bool {
    const ALLOWED: [i64; 5] = [
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_exit_group,
        libc::SYS_exit,
        libc::SYS_clock_gettime,
    ];
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [op(0, 0, 0, 0); ALLOWED.len() + 3];
    program[0] = op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
    for (i, call) in ALLOWED.iter().enumerate() {
        let to_allow = (ALLOWED.len() - i) as u8;
        program[1 + i] = op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to_allow, 0, *call as u32);
    }
    program[ALLOWED.len() + 1] = op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    program[ALLOWED.len() + 2] = op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
    let description = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `description` and the program that it points to are local variables and live through both calls.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const description) == 0
    }
}

#[test]
fn a_seccomp_filter_neither_kills_nor_forbids() {
    let victim = Victim::spawn(|shared| {
        // SAFETY: the victim makes only calls that the filter allows from here on.
        shared.check(unsafe { install_filter() }, 1);
        while !shared.finished() {
            // With a long sleep the stop meets it, and the restart would take restart_syscall().
            // SAFETY: the time is a temporary that lives through the call.
            shared.check(unsafe { libc::nanosleep(&milliseconds(50), null_mut()) } == 0, 2);
            shared.rounds.fetch_add(1, SeqCst);
        }
    });
    victim.await_rounds(1);
    // Each stop begins the sleep anew.
    for _ in 0..20 {
        hammer(&victim, 1);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(userfault::attach(victim.id()).unwrap().report().origin, Origin::Injected);
    victim.await_rounds(victim.shared.rounds.load(SeqCst) + 2);
    victim.finish_well();
}

#[test]
fn two_hundred_userfaultfds_come_and_go() {
    let expected = compute(5000);
    let victim = Victim::spawn(move |shared| {
        while !shared.finished() {
            shared.check(compute(std::hint::black_box(5000)) == expected, 1);
            // SAFETY: no descriptors are passed.
            shared.check(unsafe { libc::poll(null_mut(), 0, 1) } == 0, 2);
            // SAFETY: no memory is touched.
            shared.check(unsafe { libc::syscall(libc::SYS_getppid) } > 0, 3);
            shared.rounds.fetch_add(1, SeqCst);
        }
    });
    victim.await_rounds(1);
    let process = victim.process();
    let descriptors = || std::fs::read_dir(process.path("fd")).unwrap().count();
    let before = descriptors();
    for _ in 0..200 {
        let attached = userfault::attach(victim.id()).unwrap();
        assert_eq!(attached.report().origin, Origin::Injected);
        drop(attached);
        let number: u64 = std::fs::read_dir(process.path("fd"))
            .unwrap()
            .flatten()
            .find(|e| std::fs::read_link(e.path()).unwrap().as_os_str() == "anon_inode:[userfaultfd]")
            .and_then(|e| e.file_name().to_str()?.parse().ok())
            .unwrap();
        let close = Call { number: libc::SYS_close, arguments: [number, 0, 0] };
        assert_eq!(inject::call(&process, close).unwrap().value, Ok(0));
    }
    assert_eq!(descriptors(), before);
    victim.finish_well();
}

fn idle(shared: &Shared) {
    shared.rounds.store(1, SeqCst);
    while !shared.finished() {
        // SAFETY: no memory is touched.
        unsafe { libc::usleep(1000) };
        shared.rounds.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_stopped_process_stays_stopped() {
    let victim = Victim::spawn(idle);
    victim.await_rounds(1);
    victim.signal(libc::SIGSTOP);
    victim.await_state('T');
    assert!(matches!(userfault::attach(victim.id()), Err(AttachError::Inject(InjectError::Stopped))));
    assert_eq!(victim.state(), 'T');
    victim.signal(libc::SIGCONT);
    victim.await_rounds(victim.shared.rounds.load(SeqCst) + 5);
    userfault::attach(victim.id()).unwrap();
    victim.finish_well();
}

#[test]
fn stops_and_continues_in_between_are_kept() {
    let victim = Victim::spawn(idle);
    victim.await_rounds(1);
    let process = victim.process();
    for _ in 0..100 {
        victim.signal(libc::SIGSTOP);
        match inject::call(&process, GETPID) {
            Ok(_) | Err(InjectError::Stopped) => {}
            Err(other) => panic!("{other}"),
        }
        victim.await_state('T');
        victim.signal(libc::SIGCONT);
        match inject::call(&process, GETPID) {
            Ok(_) | Err(InjectError::Stopped) => {}
            Err(other) => panic!("{other}"),
        }
        victim.await_rounds(victim.shared.rounds.load(SeqCst) + 1);
    }
    victim.finish_well();
}

/// Another thread takes the signal while one is lent out, and all of them stop: that one too, with registers that are not its own.
#[test]
fn a_stop_of_the_whole_process_in_the_midst_of_a_call_harms_nobody() {
    let victim = Victim::spawn(|shared| {
        with_second_thread(shared);
        idle(shared);
    });
    victim.await_rounds(1);
    let process = victim.process();
    let begun = std::time::Instant::now();
    (0..20).for_each(|_| {
        inject::call(&process, GETPID).unwrap();
    });
    let undisturbed = begun.elapsed() / 20;
    let (mut made, mut refused) = (0, 0);
    for round in 0..400u32 {
        let begun = std::time::Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // From long before the thread is borrowed to when it has been given back.
                std::thread::sleep(undisturbed * (round % 100) / 80);
                victim.signal(libc::SIGSTOP);
            });
            match inject::call(&process, GETPID) {
                Ok(_) => made += 1,
                Err(InjectError::Stopped) => refused += 1,
                Err(other) => panic!("round {round}: {other}"),
            }
        });
        assert!(begun.elapsed() < Duration::from_secs(4), "round {round} took {:?}", begun.elapsed());
        victim.await_state('T');
        victim.signal(libc::SIGCONT);
        victim.await_rounds(victim.shared.rounds.load(SeqCst) + 2);
    }
    assert!(made > 0 && refused > 0, "signals came before and after: {made} calls, {refused} refused");
    victim.finish_well();
}

#[test]
fn a_traced_process_is_left_to_its_tracer() {
    let victim = Victim::spawn(idle);
    victim.await_rounds(1);
    // SAFETY: no memory is touched.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, victim.pid, 0, 0) };
    assert_eq!(seized, 0);
    // The tracer is a thread, and that is what the kernel names.
    // SAFETY: no memory is touched.
    let tracer = unsafe { libc::gettid() }.cast_unsigned();
    match userfault::attach(victim.id()) {
        Err(AttachError::Inject(InjectError::Traced(pid))) => assert_eq!(pid, tracer),
        other => panic!("{other:?}"),
    }
    drop(victim);
}

#[test]
fn a_dead_process_is_gone() {
    let mut victim = Victim::spawn(idle);
    let id = victim.id();
    victim.signal(libc::SIGKILL);
    victim.await_state('Z');
    assert!(matches!(userfault::attach(id), Err(AttachError::Gone)));
    victim.kill();
    assert!(matches!(userfault::attach(id), Err(AttachError::Gone)));
}

#[test]
fn a_process_killed_in_the_middle_is_gone() {
    for delay in 0..60_u64 {
        let victim = Victim::spawn(idle);
        victim.await_rounds(1);
        let process = victim.process();
        let pid = victim.pid;
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(delay * 20));
            // SAFETY: no memory is touched; the victim is not reaped before the thread has been joined, so the pid is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        });
        loop {
            match inject::call(&process, GETPID) {
                Ok(_) => {}
                Err(InjectError::Gone) => break,
                Err(other) => panic!("{other}"),
            }
        }
        killer.join().unwrap();
    }
}

extern "C" fn other_thread(shared: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the victim's shared memory.
    idle(unsafe { &*shared.cast::<Shared>() });
    // SAFETY: no memory is touched.
    unsafe { libc::_exit(0) }
}

fn with_second_thread(shared: &'static Shared) {
    let mut thread = 0;
    let argument = (&raw const *shared).cast_mut().cast();
    // SAFETY: the argument is the shared memory, which is there as long as the victim.
    let failed = unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), other_thread, argument) };
    shared.check(failed == 0, 1);
}

#[test]
fn a_zombie_main_thread_is_passed_over() {
    let victim = Victim::spawn(|shared| {
        with_second_thread(shared);
        // Ends this thread only.
        // SAFETY: the stack of this thread stays: the process lives on.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    victim.await_rounds(1);
    victim.await_state('Z');
    let returned = inject::call(&victim.process(), GETPID).unwrap();
    assert_ne!(returned.tid, victim.pid.cast_unsigned());
    assert_eq!(returned.value, Ok(u64::try_from(victim.pid).unwrap()));
    assert_eq!(userfault::attach(victim.id()).unwrap().report().origin, Origin::Injected);
    victim.finish_well();
}

/// fork() that blocks the caller, uninterruptibly, until the child has ended.
///
/// # Safety
/// No other thread holds a lock that the child takes: it only sleeps and reads the shared memory.
unsafe fn blocking_fork(shared: &Shared) {
    let flags = libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child has a copy of the memory (no CLONE_VM), and the victim's other threads hold no lock that it takes.
    if unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } == 0 {
        while !shared.finished() && shared.asked.load(SeqCst) == 0 {
            // SAFETY: no memory is touched.
            unsafe { libc::usleep(1000) };
        }
        // SAFETY: no memory is touched.
        unsafe { libc::_exit(0) };
    }
}

#[test]
fn a_main_thread_that_does_not_stop_is_passed_over() {
    let victim = Victim::spawn(|shared| {
        with_second_thread(shared);
        // SAFETY: the other thread only sleeps and counts.
        unsafe { blocking_fork(shared) };
        idle(shared);
    });
    victim.await_rounds(1);
    victim.await_state('D');
    let returned = inject::call(&victim.process(), GETPID).unwrap();
    assert_ne!(returned.tid, victim.pid.cast_unsigned());
    assert_eq!(victim.state(), 'D');
    victim.finish_well();
}

#[test]
fn a_process_that_does_not_stop_is_let_go() {
    let victim = Victim::spawn(|shared| {
        // SAFETY: there is no other thread.
        unsafe { blocking_fork(shared) };
        idle(shared);
    });
    victim.await_state('D');
    let process = victim.process();
    assert!(matches!(inject::call(&process, GETPID), Err(InjectError::Unresponsive(_))));
    // The wait ends, and the stop that was asked for has been taken back.
    victim.shared.asked.store(1, SeqCst);
    victim.await_rounds(5);
    hammer(&victim, 5);
    victim.finish_well();
}

#[test]
fn a_32_bit_process_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    // A 32-bit program of one segment: pause() in a loop.
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7_u8];
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    half(&mut elf, 2);
    half(&mut elf, 3);
    [1, 0x0804_8054, 52, 0, 0].into_iter().for_each(|value| word(&mut elf, value));
    [52, 32, 1, 40, 0, 0].into_iter().for_each(|value| half(&mut elf, value));
    let size = 84 + code.len() as u32;
    [1, 0, 0x0804_8000, 0x0804_8000, size, size, 5, 0x1000]
        .into_iter()
        .for_each(|value| word(&mut elf, value));
    elf.extend(code);
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program32");
    std::fs::write(&program, elf).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let mut child = match std::process::Command::new(&program).spawn() {
        Ok(child) => child,
        // A kernel without 32-bit programs has none to refuse.
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => return,
        Err(error) => panic!("{error}"),
    };
    let id = indexer::watch::process::identify(child.id()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let result = userfault::attach(id);
    assert!(matches!(result, Err(AttachError::Inject(InjectError::Foreign))), "{result:?}");
    assert!(child.try_wait().unwrap().is_none(), "it lives");
    child.kill().unwrap();
    child.wait().unwrap();
}
