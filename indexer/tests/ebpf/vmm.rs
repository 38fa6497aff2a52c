//! A process to watch: this test program once more, doing what it is told over a pipe. It stands for a VMM.
#![expect(unsafe_code, reason = "maps memory and writes to it; sets KVM memory slots")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::fd::AsFd as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, fallocate, fstat, ftruncate, memfd_create},
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap},
};

/// Stands before each answer, so that it can be told from what the test harness prints.
const ANSWER: &str = "vmm: ";

/// Eight writes of one byte a page apart, from guest physical address 0x10000 on, then a halt.
const GUEST: [u8; 19] = [
    0xb8, 0x00, 0x10, // mov ax, 0x1000
    0x8e, 0xd8, // again: mov ds, ax
    0xc6, 0x06, 0x00, 0x00, 0x41, // mov byte [0], 0x41
    0x05, 0x00, 0x01, // add ax, 0x100
    0x3d, 0x00, 0x18, // cmp ax, 0x1800
    0x72, 0xf1, // jb again
    0xf4, // hlt
];
/// The pages the guest writes, counted from the start of its memory.
pub(crate) const GUEST_WRITES: std::ops::Range<u32> = 16..24;

/// The child's RAM: a memfd, mapped shared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ram {
    pub(crate) address: u64,
    pub(crate) pages: u32,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// The child. Killed when dropped.
pub(crate) struct Vmm {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) ram: Ram,
}

impl Vmm {
    pub(crate) fn start(pages: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "vmm::child"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let ram = Ram { address: 0, pages, device: 0, inode: 0 };
        let mut vmm = Self { child, input, output, ram };
        let answer = vmm.tell(&format!("map {pages}"));
        vmm.ram = Ram { address: answer[0], pages, device: answer[1], inode: answer[2] };
        vmm
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command and waits until it has been done.
    pub(crate) fn tell(&mut self, command: &str) -> Vec<u64> {
        writeln!(self.input, "{command}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the child died at `{command}`");
            // The harness leaves the line with the test's name open.
            if let Some(at) = line.find(ANSWER) {
                let answer = &line[at + ANSWER.len()..];
                return answer.split_whitespace().map(|number| number.parse().unwrap()).collect();
            }
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other end: not a test of its own, the tests start it.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let mut state = State::default();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        let answer: Vec<String> = state.obey(command, &numbers).iter().map(u64::to_string).collect();
        println!("{ANSWER}{}", answer.join(" "));
    }
}

#[derive(Default)]
struct State {
    address: usize,
    pages: u64,
    file: Option<std::os::fd::OwnedFd>,
    other: Option<std::os::fd::OwnedFd>,
    kvm: Option<Guest>,
}

struct Guest {
    vm: VmFd,
    vcpu: VcpuFd,
}

impl State {
    fn obey(&mut self, command: &str, numbers: &[u64]) -> Vec<u64> {
        match (command, numbers) {
            ("map", &[pages]) => return self.map(pages),
            // A write of the process itself.
            ("write", &[page]) => self.poke(page, 1),
            ("read", &[page]) => {
                // SAFETY: in the mapping.
                return vec![u64::from(unsafe { self.at(page).read_volatile() })];
            }
            // A write of the kernel on the process's behalf.
            ("receive", &[page]) => {
                let zero = std::fs::File::open("/dev/zero").unwrap();
                // SAFETY: in the mapping.
                let buffer = unsafe { std::slice::from_raw_parts_mut(self.at(page), 64) };
                assert_eq!(rustix::io::read(&zero, buffer).unwrap(), 64);
            }
            ("punch", &[page, count]) => {
                self.fallocate(page, count, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE);
            }
            ("allocate", &[page, count]) => self.fallocate(page, count, FallocateFlags::empty()),
            ("punch-other", &[page, count]) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(self.other.as_ref().unwrap(), flags, page * 4096, count * 4096).unwrap();
            }
            ("truncate", &[pages]) => ftruncate(self.file.as_ref().unwrap(), pages * 4096).unwrap(),
            ("dontneed", &[page, count]) => self.advise(page, count, Advice::LinuxDontNeed),
            ("remove", &[page, count]) => self.advise(page, count, Advice::LinuxRemove),
            ("willneed", &[page, count]) => self.advise(page, count, Advice::WillNeed),
            ("many", &[rounds]) => {
                for round in 0..rounds {
                    self.fallocate(
                        round % self.pages,
                        1,
                        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    );
                }
            }
            ("kvm", &[ring]) => self.create_vm(ring != 0),
            ("slot", &[id, gpa, page, pages]) => self.slot(id, gpa, page, pages),
            ("code", &[page]) => {
                // SAFETY: the guest's memory is part of the mapping.
                unsafe { std::ptr::copy_nonoverlapping(GUEST.as_ptr(), self.at(page), GUEST.len()) };
            }
            ("run", &[]) => self.run(),
            _ => panic!("unknown command {command} {numbers:?}"),
        }
        Vec::new()
    }

    fn map(&mut self, pages: u64) -> Vec<u64> {
        let file = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
        let other = memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        let len = pages * 4096;
        ftruncate(&file, len).unwrap();
        ftruncate(&other, len).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            mmap(std::ptr::null_mut(), len as usize, protection, MapFlags::SHARED, file.as_fd(), 0)
        }
        .unwrap();
        let stat = fstat(&file).unwrap();
        (self.address, self.pages) = (address as usize, pages);
        (self.file, self.other) = (Some(file), Some(other));
        vec![address as u64, stat.st_dev, stat.st_ino]
    }

    fn at(&self, page: u64) -> *mut u8 {
        assert!(page < self.pages);
        (self.address + page as usize * 4096) as *mut u8
    }

    fn poke(&self, page: u64, value: u8) {
        // SAFETY: in the mapping.
        unsafe { self.at(page).write_volatile(value) };
    }

    fn fallocate(&self, page: u64, count: u64, flags: FallocateFlags) {
        fallocate(self.file.as_ref().unwrap(), flags, page * 4096, count * 4096).unwrap();
    }

    fn advise(&self, page: u64, count: u64, advice: Advice) {
        // SAFETY: in the mapping, to which there are no references.
        unsafe { madvise(self.at(page).cast(), count as usize * 4096, advice) }.unwrap();
    }

    fn create_vm(&mut self, ring: bool) {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        if ring {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_DIRTY_LOG_RING, ..kvm_enable_cap::default() };
            cap.args[0] = 65536;
            vm.enable_cap(&cap).unwrap();
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        self.kvm = Some(Guest { vm, vcpu });
    }

    fn slot(&self, id: u64, gpa: u64, page: u64, pages: u64) {
        let region = kvm_userspace_memory_region {
            slot: id as u32,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: gpa,
            memory_size: pages * 4096,
            userspace_addr: self.at(page) as u64,
        };
        // SAFETY: the mapping stays for as long as the VM.
        unsafe { self.kvm.as_ref().unwrap().vm.set_user_memory_region(region) }.unwrap();
    }

    fn run(&mut self) {
        let vcpu = &mut self.kvm.as_mut().unwrap().vcpu;
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (0, 2);
        vcpu.set_regs(&regs).unwrap();
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Hlt));
    }
}
