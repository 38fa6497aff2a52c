//! What a helper process does: holds a KVM VM, maps somebody's RAM file, forks. Not a test of its own.
#![expect(unsafe_code, reason = "KVM memory slots, mmap and fork have no safe face")]

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use rustix::{
    fs::MemfdFlags,
    mm::{MapFlags, ProtFlags},
};

use crate::harness::ROLE;

const MIB: usize = 1 << 20;

fn say(words: &str) {
    println!("\nhelper: {words}");
    std::io::stdout().flush().expect("somebody listens");
}

/// Started by `Helper::start` only.
#[test]
#[ignore = "does nothing by itself: other tests start it as a process of its own"]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (role, argument) = role.split_once(' ').unwrap_or((role.as_str(), ""));
    let kept: Vec<OwnedFd> = match role {
        "kvm-memfd" => hold_vm(&[map_memfd("guest", MIB)]),
        "kvm-anonymous" => hold_vm(&[map_anonymous(MIB)]),
        "kvm-two-slots" => hold_vm(&[map_memfd("low", MIB), map_anonymous(2 * MIB)]),
        "kvm-two-machines" => {
            let mut kept = hold_vm(&[map_memfd("one", MIB)]);
            kept.append(&mut hold_vm(&[map_memfd("two", MIB)]));
            kept
        }
        "kvm-fork" => {
            let kept = hold_vm(&[map_memfd("guest", MIB)]);
            fork_and_wait();
            kept
        }
        "late-kvm" => {
            // Ready first: an old process that turns into a VMM.
            say("ready");
            wait_for(argument);
            hold_vm(&[map_memfd("guest", MIB)])
        }
        "discover-without-descriptors" => {
            discover_without_descriptors(argument.parse().expect("a pid"));
            Vec::new()
        }
        "uring" => {
            let mut kept = hold_vm(&[map_memfd("guest", MIB)]);
            kept.push(register_a_buffer());
            kept
        }
        "map" => {
            map_file(argument);
            Vec::new()
        }
        _ => panic!("no role {role:?}"),
    };
    say("ready");
    // Until the test closes its end.
    let _ = std::io::stdin().read(&mut [0]);
    drop(kept);
}

fn hold_vm(memory: &[(usize, usize)]) -> Vec<OwnedFd> {
    let kvm = Kvm::new().expect("/dev/kvm can be opened");
    let vm = kvm.create_vm().expect("KVM makes a VM");
    say(&format!("vm {:x}", vm.as_raw_fd()));
    for (slot, (address, len)) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot).expect("few"),
            flags: 0,
            guest_phys_addr: (slot * 16 * MIB) as u64,
            memory_size: *len as u64,
            userspace_addr: *address as u64,
        };
        // SAFETY: the memory was mapped by this process, is never unmapped, and no guest runs.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM takes the memory");
        say(&format!("slot {slot:x} {:x} {len:x} {address:x} 0", region.guest_phys_addr));
    }
    let fd = vm.as_raw_fd();
    // The descriptor outlives the wrapper.
    // SAFETY: a fresh duplicate that nobody else closes.
    let kept = unsafe { OwnedFd::from_raw_fd(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0)) };
    std::mem::forget(vm);
    vec![kept]
}

fn map_anonymous(len: usize) -> (usize, usize) {
    // SAFETY: a new private mapping disturbs nothing.
    let address = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    (address.expect("memory") as usize, len)
}

fn map_memfd(name: &str, len: usize) -> (usize, usize) {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&file, len as u64).expect("a size");
    (map_shared(&file, len), len)
}

fn map_shared(file: &OwnedFd, len: usize) -> usize {
    // SAFETY: a new shared mapping that this process never reads or writes.
    let address = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            0,
        )
    };
    address.expect("a mapping") as usize
}

fn map_file(path: &str) {
    let file = File::options().read(true).write(true).open(path).expect("the RAM file");
    let len = file.metadata().expect("its size").len();
    map_shared(&file.into(), usize::try_from(len).expect("it fits"));
}

/// A child that shares every shared mapping and never starts a program.
fn fork_and_wait() {
    // SAFETY: the child calls nothing but prctl, pause and _exit, which are safe after fork.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::pause();
            libc::_exit(0);
        }
        child
    };
    say(&format!("child {child:x}"));
}

fn wait_for(path: &str) {
    while !std::path::Path::new(path).exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Sweeps as memdexd would, then again when no descriptor is to be had any more.
fn discover_without_descriptors(pid: u32) {
    let mut watch = crate::harness::Watch::new();
    watch.until(pid, crate::harness::NOTICED, "the VM", |vm| vm.regions.len() == 1);
    let limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours; only this process is limited.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) }, 0);
    File::open("/proc/self/stat").expect_err("there is no descriptor left");
    for _ in 0..5 {
        say(&format!("found {:x}", watch.look(pid).map_or(0, |vm| vm.regions.len())));
        std::thread::sleep(crate::harness::TICK);
    }
}

/// An io_uring with one registered buffer.
fn register_a_buffer() -> OwnedFd {
    const REGISTER_BUFFERS: libc::c_uint = 0;
    // `struct io_uring_params` of linux/io_uring.h is 120 bytes; all zero asks for the defaults.
    let mut parameters = [0u8; 120];
    // SAFETY: the kernel writes no more than those 120 bytes.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
    assert!(ring >= 0, "io_uring: {}", std::io::Error::last_os_error());
    // SAFETY: a descriptor just made for us.
    let ring = unsafe { OwnedFd::from_raw_fd(i32::try_from(ring).expect("small")) };
    let (address, len) = map_anonymous(MIB);
    let buffer = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len };
    // SAFETY: the buffer is mapped and stays so.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_BUFFERS, &raw const buffer, 1)
    };
    assert_eq!(result, 0, "io_uring_register: {}", std::io::Error::last_os_error());
    ring
}
