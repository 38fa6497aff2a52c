//! The sweep: from all processes of the host to the VMs. Owns which processes are looked at and what is shown; never
//! waits, and keeps nothing of a VM that is gone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::vm::{
    descriptor::{ProcessId, VmDescriptor},
    doubts::{kvm_descriptors, printable},
    filter::NameFilter,
    foreign::Foreign,
    kvm::KvmVm,
    maps::FileKey,
    processes::{Image, ProcessDir},
    table::{Process, ProcessTable, STAT_EVERY, STAT_OFTEN},
    watched::{Outcome, Program, Sources, Watched},
};

/// Without the kernel's list, an old process's descriptors are looked through this often at least.
const DESCRIPTORS_EVERY: Duration = Duration::from_secs(5);
/// Keeps all of them from being due in the same sweep.
const DESCRIPTORS_SPREAD: Duration = Duration::from_millis(100);

/// A process and the program image it runs: what holds for one does not after an exec.
type Key = (ProcessId, Image);

/// Finds the VMs of the host.
#[derive(Debug)]
pub struct Discovery {
    filter: NameFilter,
    table: ProcessTable,
    programs: HashMap<Key, Known>,
    watched: HashMap<Key, Watched>,
    foreign: Foreign,
    /// Descriptors with the doubts that concern other processes, as shown last.
    shown: HashMap<ProcessId, Arc<VmDescriptor>>,
    buffer: Vec<u8>,
}

/// What is remembered of any process.
#[derive(Debug)]
struct Known {
    program: Arc<Program>,
    /// Last look through its descriptors, the size of its address space then, and whether a KVM VM was among them.
    descriptors: Option<(Instant, u64, bool)>,
}

impl Discovery {
    /// Shows the VMs that `filter` lets through.
    #[must_use]
    pub fn new(filter: NameFilter) -> Self {
        Self {
            filter,
            table: ProcessTable::default(),
            programs: HashMap::new(),
            watched: HashMap::new(),
            foreign: Foreign::default(),
            shown: HashMap::new(),
            buffer: Vec::new(),
        }
    }

    /// One look at the host; the VMs in the order of their start. An unchanged VM is the same `Arc` as before.
    ///
    /// `kvm`: every kvm-vm file of the host with its memory slots, taken just before; None if the kernel can't be asked,
    /// and then processes' descriptors are searched: new processes often, old ones when their address space changes and
    /// now and then.
    ///
    /// Reads /proc and may take some milliseconds. To see all of every user's processes it needs root.
    pub fn sweep(&mut self, kvm: Option<&[KvmVm]>) -> Vec<Arc<VmDescriptor>> {
        let now = Instant::now();
        let watched: HashSet<u32> = self.watched.keys().map(|(id, _)| id.pid).collect();
        // New mappings are how a process without the kernel's list is seen to become a VMM.
        let pause = if kvm.is_some() { STAT_EVERY } else { STAT_OFTEN };
        if let Err(error) = self.table.refresh(now, pause, |pid| watched.contains(&pid)) {
            tracing::warn!(%error, "the processes can't be listed; mount /proc and raise the limit of open files");
            return self.in_order();
        }
        let mut holders: HashMap<u32, Vec<&KvmVm>> = HashMap::new();
        for vm in kvm.unwrap_or_default() {
            holders.entry(vm.pid).or_default().push(vm);
        }
        let live: HashSet<Key> =
            self.table.iter().map(|process| (process.id(), process.stat.image)).collect();
        self.programs.retain(|key, _| live.contains(key));

        let mut seen: HashMap<Key, Arc<VmDescriptor>> = HashMap::new();
        for process in self.table.iter().filter(|process| !process.stat.kernel_thread()) {
            let key = (process.id(), process.stat.image);
            let Some(known) = known(&mut self.programs, process, key, &mut self.buffer) else { continue };
            let held = holders.get(&process.pid).map_or(&[][..], Vec::as_slice);
            let may_hold = if kvm.is_some() { !held.is_empty() } else { known.holds_kvm(process, now) };
            if known.program.qemu.is_none() && !may_hold {
                self.watched.remove(&key);
                continue;
            }
            let watched = self.watched.entry(key).or_insert_with(|| Watched::new(process, &known.program));
            let sources = Sources { process, program: &known.program, kvm: kvm.map(|_| held), now };
            let descriptor = match watched.look(&sources, &mut self.buffer) {
                Outcome::Vm(descriptor) => descriptor,
                Outcome::Unknown => match watched.last() {
                    Some(last) => last.clone(),
                    None => continue,
                },
                Outcome::Gone => {
                    self.watched.remove(&key);
                    continue;
                }
            };
            if watched.settled {
                seen.insert(key, descriptor);
            }
        }
        self.watched.retain(|key, _| live.contains(key));
        self.drop_copies(&mut seen);
        let ram: HashSet<FileKey> =
            self.watched.values().flat_map(|watched| watched.ram_files.iter().copied()).collect();
        if !ram.is_empty() {
            self.foreign.look(&self.table, &ram, &watched, now, &mut self.buffer);
        }
        self.show(seen, now);
        self.in_order()
    }

    /// Somebody is known to have mapped a VM's RAM: the next sweep looks through the mappings of every process, not only of those whose
    /// turn it is.
    pub fn look_at_all_mappings(&mut self) {
        self.foreign.look_at_all();
    }

    /// When the open files of a VMM were last looked at (the time at which that began), and whether one was open for direct I/O.
    #[must_use]
    pub fn direct_io(&self, process: ProcessId) -> Option<(Instant, bool)> {
        let (_, watched) = self.watched.iter().find(|((id, _), _)| *id == process)?;
        watched.direct_io()
    }

    /// How many processes were there at the last sweep.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.table.len()
    }

    /// A VMM that forks is not two VMs. The one that has the RAM is the VM: the parent, except when the parent is only
    /// what is left of a QEMU that went to the background.
    fn drop_copies(&self, seen: &mut HashMap<Key, Arc<VmDescriptor>>) {
        let copies: Vec<(Key, Key)> = seen
            .keys()
            .filter_map(|key| {
                let process = self.table.get(key.0.pid)?;
                let parent = self.table.get(process.stat.parent)?;
                let parent_key = (parent.id(), parent.stat.image);
                (process.stat.forked() && parent.stat.image == key.1 && seen.contains_key(&parent_key))
                    .then_some((*key, parent_key))
            })
            .collect();
        for (child, parent) in copies {
            let has_ram = |key: &Key| seen.get(key).is_some_and(|vm| !vm.regions.is_empty());
            let copy = if has_ram(&parent) || !has_ram(&child) { child } else { parent };
            seen.remove(&copy);
        }
    }

    /// Adds what concerns other processes and replaces what was shown before.
    fn show(&mut self, seen: HashMap<Key, Arc<VmDescriptor>>, now: Instant) {
        let mut shown = HashMap::with_capacity(seen.len());
        for (key, descriptor) in seen {
            if !self.filter.allows(&descriptor.name, &descriptor.id()) {
                continue;
            }
            let more = self.doubts_about_others(key, &descriptor, now);
            let before = self.shown.remove(&key.0);
            let fresh = if more.is_empty() {
                descriptor
            } else {
                let mut with_doubts = VmDescriptor::clone(&descriptor);
                with_doubts.doubts.extend(more);
                Arc::new(with_doubts)
            };
            let same = before.filter(|before| *before == fresh);
            shown.insert(key.0, same.unwrap_or(fresh));
        }
        self.shown = shown;
    }

    fn doubts_about_others(&self, key: Key, descriptor: &VmDescriptor, now: Instant) -> Vec<String> {
        let mut doubts = Vec::new();
        let files = self.watched.get(&key).map_or(&[][..], |watched| &watched.ram_files);
        for (id, _) in self.foreign.mappers(key.0, files) {
            let name = self.table.get(id.pid).map_or("?", |process| process.stat.comm.as_str());
            let name = printable(name.as_ref());
            doubts.push(format!(
                "process {} ({name}) maps this VM's RAM writable, and its writes are not seen in the VMM's page tables",
                id.pid
            ));
        }
        for child in self.table.iter().filter(|child| child.stat.parent == descriptor.process.pid) {
            if child.stat.forked() && child.stat.image == key.1 && !child.about_to_exec(now) {
                doubts.push(format!(
                    "process {} is a fork of the VMM and may share its memory; its writes are not seen in the VMM's page tables",
                    child.pid
                ));
            }
        }
        doubts.sort();
        doubts
    }

    fn in_order(&self) -> Vec<Arc<VmDescriptor>> {
        let mut vms: Vec<_> = self.shown.values().cloned().collect();
        vms.sort_by_key(|vm| (vm.process.start_time, vm.process.pid));
        vms
    }
}

/// What is remembered of a process; None if it is gone.
fn known<'a>(
    programs: &'a mut HashMap<Key, Known>,
    process: &Process,
    key: Key,
    buffer: &mut Vec<u8>,
) -> Option<&'a mut Known> {
    match programs.entry(key) {
        std::collections::hash_map::Entry::Occupied(entry) => Some(entry.into_mut()),
        std::collections::hash_map::Entry::Vacant(entry) => {
            let dir = ProcessDir::open(process.pid).ok()?;
            let program = Program::of(&dir, &process.stat, buffer);
            // What was just read must belong to this process and this image of it.
            let stat = dir.stat(buffer).ok()?;
            if stat.start_time != key.0.start_time || stat.image != key.1 {
                return None;
            }
            Some(entry.insert(Known { program: Arc::new(program), descriptors: None }))
        }
    }
}

impl Known {
    /// Whether the process holds a KVM VM, as far as searching its descriptors tells.
    fn holds_kvm(&mut self, process: &Process, now: Instant) -> bool {
        let size = process.stat.address_space;
        if let Some((at, size_then, holds)) = self.descriptors
            && !process.young(now)
            && size == size_then
            && now.duration_since(at) < DESCRIPTORS_EVERY + DESCRIPTORS_SPREAD * (process.pid % 16)
        {
            return holds;
        }
        let holds = ProcessDir::open(process.pid)
            .and_then(|dir| kvm_descriptors(&dir))
            .is_ok_and(|descriptors| !descriptors.is_empty());
        self.descriptors = Some((now, size, holds));
        holds
    }
}
