//! One KVM virtual machine with one vCPU that writes the pages it is told to. Owns slots, vCPU and the background
//! loop; the memory behind the slots is in [`crate::ram`].
//!
//! The guest is eight instructions of flat 32-bit code in guest page 0. For each job the VMM sets the registers and
//! lets the vCPU run to its `hlt`: so it is the guest that writes, and the VMM that decides where.
#![expect(unsafe_code, reason = "gives KVM the addresses of guest RAM")]

mod unusual;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_MEM_LOG_DIRTY_PAGES, kvm_regs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::{
    child::Child,
    disk::Disk,
    guest::{program, set_flat_mode},
    ram::{Advise, PAGE, Ram, RamKind},
    ring::DirtyRing,
    uring::Uring,
};

type Result<T> = std::result::Result<T, String>;

/// What the VM is to be.
pub(crate) struct Options {
    pub(crate) pages: u64,
    pub(crate) ram: RamKind,
    pub(crate) log: Log,
    pub(crate) uid: Option<u32>,
    pub(crate) seccomp: bool,
}

/// Which of KVM's own dirty logs is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    None,
    Bitmap,
    Ring,
}

/// The VM and its background loop.
pub(crate) struct Machine(Arc<Shared>);

struct Shared {
    vm: VmFd,
    log: Log,
    kind: RamKind,
    slots: Mutex<BTreeMap<u32, Slot>>,
    cpu: Mutex<Cpu>,
    /// Whether the loop may write. Read under the lock of `cpu`, so that after `pause` has held that lock once,
    /// nothing is written.
    running: AtomicBool,
    disk: Mutex<Disk>,
    uring: Mutex<Option<Uring>>,
    child: Mutex<Option<Child>>,
    /// Ends the loop thread.
    ending: AtomicBool,
}

struct Slot {
    first: u64,
    ram: Ram,
}

struct Cpu {
    vcpu: VcpuFd,
    ring: Option<DirtyRing>,
    /// Pages KVM has reported dirty.
    dirty: u64,
    /// Guest writes that hit no slot.
    missed: u64,
}

/// A job for the guest: `count` pages from `first`; page i gets the pattern `key + i * step`.
struct Job {
    first: u64,
    count: u64,
    key: u32,
    step: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
        let vm = kvm.create_vm().map_err(|e| format!("KVM_CREATE_VM: {e}"))?;
        if let Some(uid) = options.uid {
            drop_privileges(uid)?;
        }
        // Intel CPUs want these three pages for guests without paging; others refuse or ignore them.
        vm.set_identity_map_address(0xfffb_c000).ok();
        vm.set_tss_address(0xfffb_d000).ok();
        if options.log == Log::Ring {
            DirtyRing::enable(&vm)?;
        }
        let vcpu = vm.create_vcpu(0).map_err(|e| format!("KVM_CREATE_VCPU: {e}"))?;
        set_flat_mode(&vcpu)?;
        let ring = if options.log == Log::Ring { Some(DirtyRing::map(&vcpu)?) } else { None };
        let machine = Self(Arc::new(Shared {
            vm,
            log: options.log,
            kind: options.ram.clone(),
            slots: Mutex::default(),
            cpu: Mutex::new(Cpu { vcpu, ring, dirty: 0, missed: 0 }),
            running: AtomicBool::new(false),
            disk: Mutex::default(),
            uring: Mutex::default(),
            child: Mutex::default(),
            ending: AtomicBool::new(false),
        }));
        machine.add_slot(0, 0, options.pages)?;
        lock(&machine.0.slots)[&0].ram.put(0, &program())?;
        Ok(machine)
    }

    pub(crate) fn guest_write(&self, first: u64, count: u64, seed: u32) -> Result<String> {
        self.0.run(&Job { first, count, key: seed, step: 1 })
    }

    pub(crate) fn guest_zero(&self, first: u64, count: u64) -> Result<String> {
        self.0.run(&Job { first, count, key: 0, step: 0 })
    }

    pub(crate) fn poke(&self, first: u64, count: u64, seed: u32) -> Result<String> {
        self.0.with_page(first, |ram, page| {
            (0..count).try_for_each(|i| ram.poke(page + i, seed.wrapping_add(i as u32)))
        })
    }

    pub(crate) fn peek(&self, first: u64, count: u64) -> Result<String> {
        self.0.with_page(first, |ram, page| (0..count).try_for_each(|i| ram.peek(page + i)))
    }

    pub(crate) fn fill(&self, first: u64, count: u64) -> Result<String> {
        self.0.with_page(first, |ram, page| ram.fill(page, count))
    }

    /// Fills every other page.
    pub(crate) fn scatter(&self, first: u64, count: u64) -> Result<String> {
        for page in (first..first + count).step_by(2) {
            self.fill(page, 1)?;
        }
        Ok(String::new())
    }

    /// Starts (or replaces) the background loop.
    pub(crate) fn start_loop(&self, rate: u64, first: u64, count: u64) -> Result<String> {
        if rate == 0 || count == 0 {
            return Err("rate and count must not be 0".to_owned());
        }
        if self.0.running.swap(true, Ordering::SeqCst) {
            return Err("a loop is running; pause it first".to_owned());
        }
        let shared = Arc::clone(&self.0);
        std::thread::spawn(move || {
            if let Err(error) = shared.write_for_ever(rate, first, count) {
                eprintln!("tiny-vmm: the loop ended: {error}");
                std::process::exit(1);
            }
        });
        Ok(String::new())
    }

    pub(crate) fn pause(&self) -> Result<String> {
        self.0.running.store(false, Ordering::SeqCst);
        drop(lock(&self.0.cpu));
        Ok(String::new())
    }

    pub(crate) fn resume(&self) -> Result<String> {
        self.0.running.store(true, Ordering::SeqCst);
        Ok(String::new())
    }

    pub(crate) fn stop_loop(&self) {
        self.0.ending.store(true, Ordering::SeqCst);
        drop(lock(&self.0.cpu));
    }

    pub(crate) fn add_slot(&self, id: u32, first: u64, pages: u64) -> Result<String> {
        let mut slots = lock(&self.0.slots);
        if slots.contains_key(&id) {
            return Err(format!("slot {id} exists"));
        }
        let slot = Slot { first, ram: Ram::new(&self.0.kind, id, pages)? };
        self.0.set_slot(id, first, pages, slot.ram.address())?;
        slots.insert(id, slot);
        Ok(String::new())
    }

    pub(crate) fn delete_slot(&self, id: u32) -> Result<String> {
        let slot = lock(&self.0.slots).remove(&id).ok_or_else(|| format!("no slot {id}"))?;
        self.0.set_slot(id, slot.first, 0, slot.ram.address())?;
        Ok(String::new())
    }

    pub(crate) fn move_slot(&self, id: u32, first: u64) -> Result<String> {
        let mut slots = lock(&self.0.slots);
        let slot = slots.get_mut(&id).ok_or_else(|| format!("no slot {id}"))?;
        self.0.set_slot(id, first, slot.ram.pages(), slot.ram.address())?;
        slot.first = first;
        Ok(String::new())
    }

    pub(crate) fn advise(&self, id: u32, page: u64, count: u64, how: Advise) -> Result<String> {
        self.with_slot(id, |slot| slot.ram.advise(page, count, how))
    }

    pub(crate) fn collapse(&self, id: u32, page: u64) -> Result<String> {
        self.with_slot(id, |slot| slot.ram.collapse(page))
    }

    pub(crate) fn truncate(&self, id: u32, pages: u64) -> Result<String> {
        self.with_slot(id, |slot| slot.ram.truncate(pages))
    }

    pub(crate) fn dirty(&self) -> Result<String> {
        let cpu = lock(&self.0.cpu);
        Ok(format!("{} {}", cpu.dirty, cpu.missed))
    }

    pub(crate) fn layout(&self) -> Result<String> {
        let mut text = String::new();
        for (id, slot) in &*lock(&self.0.slots) {
            let separator = if text.is_empty() { "" } else { ";" };
            write!(text, "{separator}slot {id} {} {} {}", slot.first, slot.ram.pages(), slot.ram.address())
                .map_err(|e| e.to_string())?;
        }
        Ok(text)
    }

    fn with_slot(&self, id: u32, f: impl FnOnce(&Slot) -> Result<()>) -> Result<String> {
        let slots = lock(&self.0.slots);
        f(slots.get(&id).ok_or_else(|| format!("no slot {id}"))?)?;
        Ok(String::new())
    }
}

impl Shared {
    fn set_slot(&self, id: u32, first: u64, pages: u64, address: u64) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot: id,
            flags: if self.log == Log::None { 0 } else { KVM_MEM_LOG_DIRTY_PAGES },
            guest_phys_addr: first * PAGE,
            memory_size: pages * PAGE,
            userspace_addr: address,
        };
        // SAFETY: the address is that of a `Ram`, which is unmapped only after its slot was set to length 0.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|e| format!("KVM_SET_USER_MEMORY_REGION: {e}"))
    }

    fn with_page(&self, first: u64, f: impl FnOnce(&Ram, u64) -> Result<()>) -> Result<String> {
        let slots = lock(&self.slots);
        let slot = slots.values().find(|slot| (slot.first..slot.first + slot.ram.pages()).contains(&first));
        let slot = slot.ok_or_else(|| format!("no slot at guest page {first}"))?;
        f(&slot.ram, first - slot.first)?;
        Ok(String::new())
    }

    fn run(&self, job: &Job) -> Result<String> {
        let mut cpu = lock(&self.cpu);
        cpu.run(job, &self.vm)?;
        if self.log == Log::Bitmap {
            for (id, slot) in &*lock(&self.slots) {
                let bytes = (slot.ram.pages() * PAGE) as usize;
                let words =
                    self.vm.get_dirty_log(*id, bytes).map_err(|e| format!("KVM_GET_DIRTY_LOG: {e}"))?;
                cpu.dirty += words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
            }
        }
        Ok(String::new())
    }

    /// Writes single random pages, in beats of two milliseconds.
    fn write_for_ever(&self, rate: u64, first: u64, count: u64) -> Result<()> {
        const BEAT: Duration = Duration::from_millis(2);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let (mut written, mut begun) = (0, Instant::now());
        while !self.ending.load(Ordering::SeqCst) {
            std::thread::sleep(BEAT);
            let mut cpu = lock(&self.cpu);
            if !self.running.load(Ordering::SeqCst) {
                (written, begun) = (0, Instant::now());
                continue;
            }
            let due = begun.elapsed().as_micros() as u64 * rate / 1_000_000;
            // After a long stop the loop does not try to catch up.
            for _ in 0..(due - written).min(rate / 100 + 1) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let page = first + (random >> 32) % count;
                cpu.run(&Job { first: page, count: 1, key: random as u32, step: 1 }, &self.vm)?;
            }
            written = due;
        }
        Ok(())
    }
}

impl Cpu {
    /// Runs a job, in parts that fit the dirty ring: a KVM that emulates the guest's instructions runs on past a full
    /// ring and overwrites entries that were not taken yet.
    fn run(&mut self, job: &Job, vm: &VmFd) -> Result<()> {
        if job.count == 0 || job.first + job.count > 1 << 20 {
            return Err(format!("pages {}+{} are not below 4 GiB", job.first, job.count));
        }
        let most = if self.ring.is_some() { DirtyRing::PAGES_AT_ONCE } else { job.count };
        for done in (0..job.count).step_by(most as usize) {
            let part = Job {
                first: job.first + done,
                count: most.min(job.count - done),
                key: job.key.wrapping_add(done as u32 * job.step),
                step: job.step,
            };
            self.run_part(&part, vm)?;
        }
        Ok(())
    }

    fn run_part(&mut self, job: &Job, vm: &VmFd) -> Result<()> {
        let regs = kvm_regs {
            rip: 0,
            rflags: 2,
            rdi: job.first * PAGE,
            rcx: job.count,
            rax: u64::from(job.key),
            rdx: u64::from(job.step),
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&regs).map_err(|e| format!("KVM_SET_REGS: {e}"))?;
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => break,
                // No slot there (any more): the write goes nowhere, as on a real bus.
                Ok(VcpuExit::MmioWrite(..)) => self.missed += 1,
                Ok(VcpuExit::Intr) => {}
                Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => self.harvest(vm)?,
                Ok(other) => return Err(format!("unexpected exit {other:?}")),
                // EINTR, EAGAIN: a signal or a debugger's stop.
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(format!("KVM_RUN: {error}")),
            }
        }
        self.harvest(vm)
    }

    fn harvest(&mut self, vm: &VmFd) -> Result<()> {
        if let Some(ring) = &mut self.ring {
            self.dirty += ring.harvest(vm)?;
        }
        Ok(())
    }
}

/// Becomes an ordinary user; KVM's files are open by now. Must run before the first thread is started.
fn drop_privileges(uid: u32) -> Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (user, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
    set_thread_groups(&[]).map_err(|e| format!("setgroups: {e}"))?;
    set_thread_res_gid(group, group, group).map_err(|e| format!("setresgid: {e}"))?;
    set_thread_res_uid(user, user, user).map_err(|e| format!("setresuid: {e}"))
}
