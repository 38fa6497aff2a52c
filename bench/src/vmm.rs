//! A process that holds a KVM VM, for the bench to write in: memory of a given size, filled with pages that are all
//! different, then written on command. Its guest never runs; writes come from the VMM, as device emulation's do.
#![expect(unsafe_code, reason = "it maps memory, gives it to KVM, and writes it")]

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{ChildStdin, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use memdex_tests::{Scratch, process::Process};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap},
    time::{ClockId, clock_gettime},
};

const PAGE: usize = 4096;

/// What the VMM is to hold.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// MiB of guest memory
    #[arg(long)]
    mib: usize,
    /// Pages from this one on get content that depends on the seed; those before do not
    #[arg(long, default_value_t = 0)]
    own_from: usize,
    /// Makes the content of different VMs differ
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to which the times of writes are put
    #[arg(long)]
    times: Option<PathBuf>,
}

/// The child's side: fills the memory, says `ready`, then obeys lines: `write FIRST COUNT PER_SECOND`, with 0 for as fast as it
/// goes, and then without noting times.
pub(crate) fn run(arguments: &Arguments) {
    let len = arguments.mib << 20;
    let memory: OwnedFd = memfd_create("bench-ram", MemfdFlags::CLOEXEC).expect("a memfd can be made");
    ftruncate(&memory, len as u64).expect("the memfd can be sized");
    // SAFETY: a new shared mapping of a file of that size, kept until the process ends; nothing else refers to it.
    let start = unsafe {
        mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &memory, 0)
    }
    .expect("the memory can be mapped")
    .cast::<u8>();
    for page in 0..len / PAGE {
        let seed = if page >= arguments.own_from { arguments.seed } else { 0 };
        // SAFETY: within the mapping, which this thread alone writes.
        fill(unsafe { std::slice::from_raw_parts_mut(start.add(page * PAGE), PAGE) }, page as u64, seed);
    }
    let kvm = Kvm::new().expect("/dev/kvm can be opened");
    let vm = kvm.create_vm().expect("KVM makes a VM");
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: len as u64,
        userspace_addr: start as u64,
    };
    // SAFETY: the slot's memory is the mapping above, which lives as long as the process.
    unsafe { vm.set_user_memory_region(slot) }.expect("KVM takes the memory");
    println!("ready");
    for (round, line) in std::io::stdin().lines().enumerate() {
        let line = line.expect("stdin can be read");
        let numbers: Vec<usize> =
            line.split(' ').skip(1).map(|word| word.parse().expect("a number")).collect();
        let [first, count, per_second] = numbers[..] else {
            panic!("write FIRST COUNT PER_SECOND, not {line:?}")
        };
        let times = write_paced(start, first, count, per_second, round as u64 + 1);
        if let Some(file) = arguments.times.as_ref().filter(|_| per_second > 0) {
            let mut out = BufWriter::new(File::create(file).expect("the file can be made"));
            for (page, nanoseconds) in times {
                writeln!(out, "{page} {nanoseconds}").expect("the file can be written");
            }
            out.flush().expect("the file can be written");
        }
        println!("done");
    }
}

/// Writes one word in each page at a steady pace, another one in each round. Returns when each was written, by the monotonic clock; nothing
/// if there is no pace to keep.
fn write_paced(
    start: *mut u8,
    first: usize,
    count: usize,
    per_second: usize,
    round: u64,
) -> Vec<(usize, u64)> {
    let begun = Instant::now();
    let mut times = Vec::with_capacity(if per_second > 0 { count } else { 0 });
    for i in 0..count {
        if per_second > 0 {
            let due = begun + Duration::from_nanos(i as u64 * 1_000_000_000 / per_second as u64);
            if let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
                thread::sleep(wait);
            }
        }
        let page = first + i;
        // SAFETY: page `page` lies in the mapping: the bench asks for pages of the VM only. Aligned, and volatile so
        // that the write happens here.
        unsafe {
            start
                .add(page * PAGE + 8)
                .cast::<u64>()
                .write_volatile(round << 48 | 0x6d65_0000_0000 | page as u64);
        };
        if per_second > 0 {
            times.push((page, now()));
        }
    }
    times
}

/// Nanoseconds of the monotonic clock, which is the same in every process.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Bytes that differ from page to page and seed to seed, and are not zero.
pub(crate) fn fill(bytes: &mut [u8], page: u64, seed: u64) {
    let mut state = (page + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
    for word in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *word = state.to_le_bytes();
    }
}

/// The bench's side: a running VMM.
#[derive(Debug)]
pub(crate) struct Vmm {
    process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    times: PathBuf,
}

impl Vmm {
    /// Starts one and waits until its memory is filled.
    pub(crate) fn start(scratch: &Scratch, name: &str, mib: usize, own_from: usize, seed: u64) -> Self {
        let times = scratch.path(&format!("{name}.times"));
        let mut command = scratch.command(std::env::current_exe().expect("we know who we are"));
        command.args(["vmm", "--mib", &mib.to_string(), "--own-from", &own_from.to_string()]);
        command.args(["--seed", &seed.to_string(), "--times"]).arg(&times);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(name, &mut command);
        let stdin = process.child().stdin.take().expect("it was asked for");
        let stdout = BufReader::new(process.child().stdout.take().expect("it was asked for"));
        let mut vmm = Self { process, stdin, stdout, times };
        vmm.expect("ready");
        vmm
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Writes pages at a pace; returns page and time of each write.
    pub(crate) fn write(&mut self, first: usize, count: usize, per_second: usize) -> Vec<(u64, u64)> {
        writeln!(self.stdin, "write {first} {count} {per_second}").expect("the VMM listens");
        self.expect("done");
        let text = std::fs::read_to_string(&self.times).expect("the VMM wrote its times");
        let line = |line: &str| {
            let (page, time) = line.split_once(' ')?;
            Some((page.parse().ok()?, time.parse().ok()?))
        };
        text.lines().map(|text| line(text).expect("page and time")).collect()
    }

    /// Writes pages as fast as it goes.
    pub(crate) fn write_at_once(&mut self, first: usize, count: usize) {
        writeln!(self.stdin, "write {first} {count} 0").expect("the VMM listens");
        self.expect("done");
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the VMM talks");
        assert_eq!(line.trim_end(), word);
    }
}
