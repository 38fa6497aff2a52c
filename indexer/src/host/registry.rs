//! The VMs there are right now, and their tracker threads.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::Instant,
};

use memdex_wire::event::Event;

use super::{FindError, Shared, Vm, content::ContentSource, kept::Kept};
use crate::{
    map::{MapId, Place},
    vm::descriptor::{ProcessId, VmDescriptor},
    watch::tracker::{COMMANDS, Command, Tracker},
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Read by every request, written when a VM comes or goes.
    vms: RwLock<Vec<Arc<Vm>>>,
    /// Everything that the reverse index may name.
    by_map: RwLock<HashMap<MapId, Arc<dyn ContentSource>>>,
    /// What VMs that moved away left behind.
    pub(super) kept: Kept,
    /// Used by the sweeping thread alone.
    trackers: Mutex<HashMap<ProcessId, JoinHandle<()>>>,
    /// VMs that cannot be tracked at all; said once, not at every sweep.
    refused: Mutex<HashSet<ProcessId>>,
    next_map: AtomicU32,
    gone: AtomicU64,
}

impl Registry {
    pub(super) fn all(&self) -> Vec<Arc<Vm>> {
        self.vms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.vms.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn gone(&self) -> u64 {
        self.gone.load(Relaxed)
    }

    pub(super) fn by_map(&self, map: MapId) -> Option<Arc<dyn ContentSource>> {
        self.by_map.read().unwrap_or_else(PoisonError::into_inner).get(&map).cloned()
    }

    /// A number that no source had before.
    pub(crate) fn new_map(&self) -> MapId {
        MapId(self.next_map.fetch_add(1, Relaxed))
    }

    /// From now on the reverse index may name this source.
    pub(crate) fn add_source(&self, source: Arc<dyn ContentSource>) {
        self.by_map.write().unwrap_or_else(PoisonError::into_inner).insert(source.map_id(), source);
    }

    /// From now on it may not.
    pub(crate) fn remove_source(&self, shared: &Shared, map: MapId) {
        let source = self.by_map.write().unwrap_or_else(PoisonError::into_inner).remove(&map);
        // When the daemon ends there is nobody to tell, and no time.
        let told = (shared.index.changes().listened() || shared.index.leaves_out()) && !shared.ending();
        if let Some(source) = source.filter(|_| told) {
            // Those who follow what this host holds are told of what nobody else holds. If that is more than is kept for them, they take a new picture. And what the
            // index knows of places that it left out stays right.
            source.each_content(&mut |page, fingerprint| {
                shared.index.remove(fingerprint, Place { map, page });
            });
        }
        shared.index.forget(map);
    }

    /// Everything that the reverse index may name.
    pub(super) fn sources(&self) -> Vec<Arc<dyn ContentSource>> {
        self.by_map.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Gives up what is kept beyond `most` bytes, or while memory is scarce.
    pub(super) fn give_up(&self, shared: &Shared, most: u64) {
        for vm in self.kept.give_up(most) {
            tracing::info!(vm = %vm.id(), name = vm.name(), "giving up what this VM left behind");
            self.remove_source(shared, vm.map_id());
        }
    }

    pub(super) fn find(&self, key: &str) -> Result<Arc<Vm>, FindError> {
        let vms = self.all();
        if let Some(vm) = vms.iter().find(|vm| vm.id() == key) {
            return Ok(Arc::clone(vm));
        }
        let mut named = vms.iter().filter(|vm| vm.name() == key);
        match (named.next(), named.next()) {
            (Some(vm), None) => return Ok(Arc::clone(vm)),
            (Some(_), Some(_)) => {
                let ids = vms.iter().filter(|vm| vm.name() == key).map(|vm| vm.id().to_owned()).collect();
                return Err(FindError::Ambiguous { name: key.to_owned(), ids });
            }
            (None, _) => {}
        }
        let pid = key.parse::<u32>().ok();
        let by_pid = vms.iter().find(|vm| Some(vm.process().pid) == pid);
        by_pid.cloned().ok_or_else(|| FindError::NotFound(key.to_owned()))
    }

    /// Brings the registry in step with what a sweep found.
    /// `looked`: when a VMM's open files were last looked at, and whether one was open for direct I/O.
    pub(super) fn update(
        &self,
        shared: &Arc<Shared>,
        found: &[Arc<VmDescriptor>],
        looked: impl Fn(ProcessId) -> Option<(Instant, bool)>,
    ) {
        let known = self.all();
        for vm in &known {
            match found.iter().find(|descriptor| descriptor.process == vm.process()) {
                Some(descriptor) if **descriptor == *vm.descriptor() => {}
                Some(descriptor) => vm.changed(Arc::clone(descriptor)),
                None => vm.stop("its process has ended, or is no VM any more"),
            }
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|process| found.iter().any(|descriptor| descriptor.process == *process));
        let refused = refused.clone();
        for descriptor in found.iter().filter(|descriptor| !refused.contains(&descriptor.process)) {
            if !known.iter().any(|vm| vm.process() == descriptor.process) {
                self.add(shared, Arc::clone(descriptor), looked(descriptor.process));
            }
        }
        let mut trackers = self.trackers.lock().unwrap_or_else(PoisonError::into_inner);
        let ended: Vec<_> = trackers.extract_if(|_, thread| thread.is_finished()).collect();
        drop(trackers);
        for (process, thread) in ended {
            let panicked = thread.join().is_err();
            if let Some(vm) = self.all().into_iter().find(|vm| vm.process() == process) {
                // Only a tracker that panicked leaves its VM behind.
                debug_assert!(panicked);
                self.remove(shared, &vm, "its tracker failed; see the log");
            }
        }
    }

    fn add(&self, shared: &Arc<Shared>, descriptor: Arc<VmDescriptor>, looked: Option<(Instant, bool)>) {
        let map = self.new_map();
        let (sender, commands) = mpsc::sync_channel(COMMANDS);
        let process = descriptor.process;
        let vm = Arc::new(Vm::new(descriptor, map, sender));
        // Before its tracker begins: what that writes down for the next daemon rests on it.
        if let Some((at, found)) = looked {
            vm.note_direct_io(at, found);
        }
        self.vms.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&vm));
        self.add_source(Arc::<Vm>::clone(&vm));
        tracing::info!(vm = %vm.id(), name = vm.name(), "found a VM");
        shared.announce(Event::VmAppeared { vm: vm.id().to_owned(), name: vm.name().to_owned() });
        let thread = {
            let (vm, shared) = (Arc::clone(&vm), Arc::clone(shared));
            let run = move || track(&vm, &shared, commands);
            std::thread::Builder::new().name(format!("memdex-vm-{}", process.pid)).spawn(run)
        };
        match thread {
            Ok(thread) => {
                self.trackers.lock().unwrap_or_else(PoisonError::into_inner).insert(process, thread);
            }
            Err(error) => {
                tracing::error!(vm = %vm.id(), %error, "cannot start a thread for this VM; trying again");
                self.remove(shared, &vm, "its tracker could not be started");
            }
        }
    }

    fn remove(&self, shared: &Shared, vm: &Arc<Vm>, reason: &str) {
        // Its tracker may have found out by itself, and those who wait for the VM are to hear of it too.
        vm.stop("it is no longer indexed");
        self.vms.write().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, vm));
        if vm.moved_away() && shared.options.keep_bytes > 0 {
            self.kept.add(Arc::clone(vm));
            self.give_up(shared, shared.options.keep_bytes);
        } else {
            self.remove_source(shared, vm.map_id());
        }
        self.gone.fetch_add(1, Relaxed);
        tracing::info!(vm = %vm.id(), name = vm.name(), reason, "no longer indexed");
        let (vm, name) = (vm.id().to_owned(), vm.name().to_owned());
        shared.announce(Event::VmGone { vm, name, reason: reason.to_owned() });
    }

    /// Ends all trackers and waits for them.
    pub(super) fn stop_all(&self) {
        for vm in self.all() {
            vm.stop("the daemon stops");
        }
        let trackers = std::mem::take(&mut *self.trackers.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, thread) in trackers {
            let _ = thread.join();
        }
        self.kept.take_all();
    }
}

/// The life of a tracker thread.
fn track(vm: &Arc<Vm>, shared: &Arc<Shared>, commands: mpsc::Receiver<Command>) {
    let reason = match Tracker::attach(Arc::clone(vm), Arc::clone(shared), commands) {
        Ok(tracker) => tracker.run(),
        Err(lost) => {
            tracing::warn!(vm = %vm.id(), name = vm.name(), reason = lost.0, "cannot be tracked");
            let refused = &shared.registry.refused;
            refused.lock().unwrap_or_else(PoisonError::into_inner).insert(vm.process());
            lost.0
        }
    };
    shared.registry.remove(shared, vm, &reason);
}
