//! VMs come, go, crash, and leave their pids to others.
#![expect(unsafe_code, reason = "a process with a chosen pid is made by the clone3 system call")]

use std::{
    ffi::CString,
    process::Command,
    time::{Duration, Instant},
};

use crate::harness::{Helper, NOTICED, PATIENCE, Process, Qemu, TICK, Watch};

#[test]
fn a_killed_vm_is_gone_at_once_even_as_a_zombie() {
    let mut first = Qemu::start(&["-m", "32", "-name", "first"]);
    let second = Qemu::start(&["-m", "32", "-name", "second"]);
    let mut watch = Watch::new();
    watch.until(first.pid(), NOTICED, "the first VM", |_| true);
    watch.until(second.pid(), NOTICED, "the second VM", |_| true);
    // Nobody waits for it yet.
    first.process.kill_only();
    watch.until_gone(first.pid(), NOTICED);
    first.process.kill();
    assert_eq!(watch.look(first.pid()), None);
    assert!(watch.look(second.pid()).is_some());
}

#[test]
fn vms_that_die_between_any_two_steps_never_leave_an_entry() {
    let mut watch = Watch::new();
    for round in 0..40u64 {
        let mut process = Process::start(Command::new("qemu-system-x86_64").args([
            "-S",
            "-display",
            "none",
            "-nodefaults",
            "-m",
            "32",
        ]));
        let end = Instant::now() + Duration::from_millis(round * 5);
        while Instant::now() < end {
            watch.sweep();
        }
        process.kill_only();
        watch.sweep();
        process.kill();
        assert_eq!(watch.look(process.pid()), None);
    }
}

#[test]
fn a_shell_that_turns_into_qemu_is_noticed() {
    let script = "sleep 5; exec qemu-system-x86_64 -S -display none -nodefaults -m 16 -name memdex-exec";
    let process = Process::start(Command::new("sh").args(["-c", script]));
    let mut watch = Watch::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        assert_eq!(watch.look(process.pid()), None);
        std::thread::sleep(TICK);
    }
    let exe = format!("/proc/{}/exe", process.pid());
    while !std::fs::read_link(&exe).unwrap().to_string_lossy().contains("qemu") {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let vm = watch.until(process.pid(), NOTICED, "the VM", |_| true);
    assert_eq!((vm.name.as_str(), vm.regions.len()), ("memdex-exec", 1));
}

#[test]
fn a_reused_pid_is_another_vm() {
    let mut watch = Watch::new();
    let mut old = Qemu::start(&["-m", "32", "-name", "old"]);
    let pid = old.pid();
    let first = watch.until(pid, NOTICED, "the old VM", |_| true);
    old.process.kill();
    // No sweep in between: the daemon never sees the pid free.
    let mut new = WithPid::start(pid, &["-name", "new", "-m", "16"]);
    let start = Instant::now();
    let second = loop {
        if let Some(vm) = watch.look(pid) {
            // Not for one sweep may anything of the old VM be shown under the new process.
            assert_eq!(vm.name, "new");
            assert!(vm.regions.iter().all(|region| region.len == 16 << 20), "{vm:#?}");
            assert_ne!(vm.process, first.process);
            if vm.regions.len() == 1 {
                break vm;
            }
        }
        assert!(start.elapsed() < PATIENCE, "the new VM does not come");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_ne!(second.id(), first.id());

    new.kill();
    // A pid that goes to something that is no VM.
    let sleeper = WithPid::start_program(pid, c"/bin/sleep", &["sleep", "100"]);
    assert_eq!(watch.look(pid), None);
    drop(sleeper);
}

#[test]
fn a_lack_of_descriptors_makes_no_vm_disappear() {
    let qemu = Qemu::start(&["-m", "32"]);
    let helper = Helper::start(&format!("discover-without-descriptors {}", qemu.pid()));
    assert_eq!(helper.said, ["found 1"; 5]);
}

#[test]
fn five_hundred_processes_cost_little() {
    let _crowd: Vec<Process> = (0..500).map(|_| Process::start(Command::new("sleep").arg("1000"))).collect();
    let vms: Vec<Qemu> = (0..2).map(|_| Qemu::start(&["-m", "32"])).collect();
    for kvm in [None, Some(Vec::new())] {
        let mut watch = Watch::new();
        watch.kvm = kvm;
        // Until nothing is young and every process has been looked at once.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(6) {
            watch.sweep();
            std::thread::sleep(TICK);
        }
        // Processor time: the machine has other things to do.
        let before = processor_time();
        let mut longest = Duration::ZERO;
        const SWEEPS: u32 = 20;
        for _ in 0..SWEEPS {
            let start = Instant::now();
            assert!(watch.sweep().len() >= vms.len());
            longest = longest.max(start.elapsed());
            std::thread::sleep(TICK);
        }
        let a_sweep = (processor_time() - before) / SWEEPS;
        let processes = watch.discovery.processes();
        let kernel = watch.kvm.is_some();
        println!("{processes} processes, kernel's list {kernel}: {a_sweep:?} a sweep, longest {longest:?}");
        // Several times what was measured, for slow machines.
        assert!(a_sweep < Duration::from_millis(20), "{a_sweep:?} a sweep");
    }
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(
        u64::try_from(time.tv_sec).expect("not negative"),
        u32::try_from(time.tv_nsec).expect("below a second"),
    )
}

/// A QEMU, or another program, with a chosen pid.
struct WithPid(rustix::process::Pid);

impl WithPid {
    fn start(pid: u32, arguments: &[&str]) -> Self {
        let mut all = vec!["qemu-system-x86_64", "-S", "-display", "none", "-nodefaults"];
        all.extend(arguments);
        Self::start_program(pid, c"/usr/bin/qemu-system-x86_64", &all)
    }

    fn start_program(pid: u32, program: &std::ffi::CStr, arguments: &[&str]) -> Self {
        let arguments: Vec<CString> =
            arguments.iter().map(|word| CString::new(*word).expect("no zero byte")).collect();
        let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|word| word.as_ptr()).collect();
        pointers.push(std::ptr::null());
        let path = c"PATH=/usr/bin:/bin";
        let environment = [path.as_ptr(), std::ptr::null()];
        let wanted = libc::pid_t::try_from(pid).expect("a pid");
        let start = Instant::now();
        loop {
            // SAFETY: all-zero is a valid clone_args.
            let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
            clone.exit_signal = libc::SIGCHLD as u64;
            clone.set_tid = &raw const wanted as u64;
            clone.set_tid_size = 1;
            // SAFETY: like fork; the child calls execve and _exit only, with memory prepared before.
            let made =
                unsafe { libc::syscall(libc::SYS_clone3, &raw const clone, size_of::<libc::clone_args>()) };
            if made == 0 {
                // SAFETY: the pointers are to strings that live in this function; both arrays end with null.
                unsafe {
                    libc::execve(program.as_ptr(), pointers.as_ptr(), environment.as_ptr());
                    libc::_exit(127);
                }
            }
            if made > 0 {
                return Self(rustix::process::Pid::from_raw(wanted).expect("not zero"));
            }
            // Someone else may hold the pid for a moment.
            let error = std::io::Error::last_os_error();
            assert!(start.elapsed() < PATIENCE, "clone3 with pid {pid}: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::empty());
    }
}

impl Drop for WithPid {
    fn drop(&mut self) {
        self.kill();
    }
}
