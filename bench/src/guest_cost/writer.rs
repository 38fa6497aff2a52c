//! A process with memory that is written on command, which measures its own writes, in time of the processor that it had. It holds a KVM VM, so a daemon finds it.
#![expect(unsafe_code, reason = "it maps memory, gives it to KVM, and writes it")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::fd::OwnedFd,
    process::{ChildStdin, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use indexer::units::Hva;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use memdex_tests::{Scratch, process::Process};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, openat},
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    },
    time::{ClockId, clock_gettime},
};

pub(crate) const PAGE: usize = 4096;
pub(crate) const HUGE: usize = 2 << 20;

/// What the memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Ram {
    /// A memfd, in small pages.
    Memfd,
    /// Private, in huge pages.
    Anonymous,
    /// A file of a tmpfs with `huge=always`.
    HugeFile,
}

/// What the writer is to hold.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// MiB of memory
    #[arg(long)]
    mib: usize,
    /// What it is
    #[arg(long)]
    ram: Ram,
}

/// The child's side. Says where the memory is, then obeys lines.
///
/// - `once FIRST COUNT STRIDE` writes a word in each of COUNT pages: `NANOSECONDS`
/// - `read FIRST COUNT STRIDE` reads one in each: `NANOSECONDS`
/// - `busy MS FIRST COUNT` goes round in COUNT pages for so long: `WRITES NANOSECONDS`
/// - `huge` how much of the memory is mapped in huge pages: `KIB`
pub(crate) fn run(arguments: &Arguments) {
    let len = arguments.mib << 20;
    let start = map(arguments.ram, len);
    for page in 0..len / PAGE {
        // SAFETY: within the mapping, which this thread alone writes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.add(page * PAGE), PAGE) };
        crate::vmm::fill(bytes, page as u64, 1);
    }
    let kvm = Kvm::new().expect("/dev/kvm can be opened");
    let vm = kvm.create_vm().expect("KVM makes a VM");
    let slot = kvm_userspace_memory_region {
        memory_size: len as u64,
        userspace_addr: start as u64,
        ..Default::default()
    };
    // SAFETY: the slot's memory is the mapping above, which lives as long as the process.
    unsafe { vm.set_user_memory_region(slot) }.expect("KVM takes the memory");
    println!("{}", start as u64);
    for line in std::io::stdin().lines() {
        let line = line.expect("stdin can be read");
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let numbers: Vec<usize> = words.map(|word| word.parse().expect("a number")).collect();
        match (command, numbers.as_slice()) {
            ("once", [first, count, stride]) => println!("{}", once(start, *first, *count, *stride)),
            ("read", [first, count, stride]) => println!("{}", read(start, *first, *count, *stride)),
            ("busy", [milliseconds, first, count]) => {
                let time = Duration::from_millis(*milliseconds as u64);
                let (writes, nanoseconds) = busy(start, time, *first, *count);
                println!("{writes} {nanoseconds}");
            }
            ("huge", []) => println!("{}", huge(start as u64)),
            _ => panic!("{line:?} is no command"),
        }
    }
}

/// Maps memory that begins where a huge page can.
fn map(ram: Ram, len: usize) -> *mut u8 {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; it is given up to the one below.
    let room =
        unsafe { mmap_anonymous(std::ptr::null_mut(), len + HUGE, ProtFlags::empty(), MapFlags::PRIVATE) }
            .expect("there is room for the memory");
    let place = (room as usize).next_multiple_of(HUGE) as *mut std::ffi::c_void;
    let file: OwnedFd = match ram {
        Ram::Anonymous => {
            // SAFETY: it replaces a part of the mapping above, which nobody uses.
            let start =
                unsafe { mmap_anonymous(place, len, protection, MapFlags::PRIVATE | MapFlags::FIXED) }
                    .expect("memory can be mapped");
            // SAFETY: a hint for that mapping.
            unsafe { madvise(start, len, Advice::LinuxHugepage) }.expect("huge pages can be asked for");
            return start.cast();
        }
        Ram::Memfd => memfd_create("bench-ram", MemfdFlags::CLOEXEC).expect("a memfd can be made"),
        Ram::HugeFile => {
            // Mounted nowhere: it ends with the last file that is open in it.
            let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("tmpfs can be mounted (as root)");
            fsconfig_set_string(&tmpfs, "huge", "always").expect("tmpfs knows huge pages");
            fsconfig_create(&tmpfs).expect("a tmpfs can be made");
            let root = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
                .expect("a tmpfs can be mounted");
            openat(&root, "ram", OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
                .expect("a file can be made")
        }
    };
    ftruncate(&file, len as u64).expect("the file can be sized");
    // SAFETY: as above.
    unsafe { mmap(place, len, protection, MapFlags::SHARED | MapFlags::FIXED, &file, 0) }
        .expect("the memory can be mapped")
        .cast()
}

/// Nanoseconds of the processor that this thread has had: time in faults counts, time for which others had the processor does not.
fn processor() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn once(start: *mut u8, first: usize, count: usize, stride: usize) -> u64 {
    let began = processor();
    for i in 0..count {
        // SAFETY: the bench asks for pages of the mapping only. Volatile so that the write happens here.
        unsafe { start.add((first + i * stride) * PAGE).cast::<u64>().write_volatile(i as u64) };
    }
    processor() - began
}

fn read(start: *mut u8, first: usize, count: usize, stride: usize) -> u64 {
    let began = processor();
    for i in 0..count {
        // SAFETY: as in `once`.
        std::hint::black_box(unsafe { start.add((first + i * stride) * PAGE).cast::<u64>().read_volatile() });
    }
    processor() - began
}

fn busy(start: *mut u8, time: Duration, first: usize, count: usize) -> (u64, u64) {
    let (began, before) = (Instant::now(), processor());
    let mut writes = 0;
    loop {
        for page in first..first + count {
            // SAFETY: as in `once`.
            unsafe { start.add(page * PAGE).cast::<u64>().write_volatile(writes) };
            writes += 1;
            if writes % 4096 == 0 && began.elapsed() >= time {
                return (writes, processor() - before);
            }
        }
    }
}

/// KiB of the mapping at this address that are mapped in huge pages.
fn huge(start: u64) -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("a process may read its own");
    let begin = format!("{start:x}-");
    smaps
        .lines()
        .skip_while(|line| !line.starts_with(&begin))
        .take_while(|line| !line.starts_with("VmFlags"))
        .filter(|line| line.starts_with("AnonHugePages:") || line.starts_with("ShmemPmdMapped:"))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// The bench's side.
#[derive(Debug)]
pub(crate) struct Writer {
    process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Where its memory begins.
    pub(crate) start: Hva,
    pub(crate) pages: usize,
}

impl Writer {
    /// Starts one, its memory filled.
    pub(crate) fn start(scratch: &Scratch, ram: Ram, mib: usize) -> Self {
        let mut command = scratch.command(std::env::current_exe().expect("we know who we are"));
        let kind = clap::ValueEnum::to_possible_value(&ram).expect("each kind has a name");
        command.args(["writer", "--mib", &mib.to_string(), "--ram", kind.get_name()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start("writer", &mut command);
        let stdin = process.child().stdin.take().expect("it was asked for");
        let stdout = BufReader::new(process.child().stdout.take().expect("it was asked for"));
        let mut writer = Self { process, stdin, stdout, start: Hva(0), pages: (mib << 20) / PAGE };
        writer.start = Hva(writer.answer()[0]);
        writer
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends a command; its numbers.
    pub(crate) fn ask(&mut self, command: &str) -> Vec<u64> {
        self.tell(command);
        self.answer()
    }

    /// Sends a command whose answer is fetched later.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("the writer listens");
    }

    pub(crate) fn answer(&mut self) -> Vec<u64> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the writer talks");
        line.split_ascii_whitespace().map(|word| word.parse().expect("a number")).collect()
    }

    /// Nanoseconds for a write to each of these pages.
    pub(crate) fn once(&mut self, first: usize, count: usize, stride: usize) -> f64 {
        self.ask(&format!("once {first} {count} {stride}"))[0] as f64 / count as f64
    }

    /// Writes a nanosecond, going round in `count` pages for so long.
    pub(crate) fn busy(&mut self, time: Duration, first: usize, count: usize) -> f64 {
        self.tell(&format!("busy {} {first} {count}", time.as_millis()));
        self.rate()
    }

    /// What a `busy` that was told came to.
    pub(crate) fn rate(&mut self) -> f64 {
        let answer = self.answer();
        answer[0] as f64 / answer[1] as f64
    }

    /// KiB mapped in huge pages.
    pub(crate) fn huge(&mut self) -> f64 {
        self.ask("huge")[0] as f64
    }
}
