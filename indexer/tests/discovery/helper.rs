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
