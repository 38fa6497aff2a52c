//! A host: all its VMs, what they share, and the thread that notices VMs coming and going.
//!
//! Owns the registry. Discovery says what runs, a [tracker](crate::watch::tracker) for each VM keeps its map, readers come
//! through [`Host`] and [`Vm`]. Never reads guest memory itself, save to hand out a content that was asked for.

mod content;
mod detach;
mod finder;
mod haste;
mod kept;
mod picture;
mod registry;
pub(crate) mod status;
mod vm;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::JoinHandle,
    time::Duration,
};

use memdex_wire::{Fingerprint, event::Event};
use tokio::sync::broadcast;

use crate::{
    fingerprint::{Page, pool::HashPool},
    map::{ContentIndex, IndexStatistics, MapFolder},
    vm::{Discovery, KvmVm, descriptor::Memslot, filter::NameFilter},
    watch::{
        cost::Prices,
        ebpf::{HookOptions, Hooks},
        tracker::TrackerOptions,
    },
};
pub(crate) use content::ContentSource;
pub use detach::{Detached, detach};
pub use finder::Finder;
pub use kept::KeptFigures;
use registry::Registry;
pub(crate) use status::{Freshness, GuestShare, Status};
pub use vm::{JobError, Vm};

/// Events kept for readers that are behind; a slower reader is told how many it missed.
const EVENTS: usize = 1024;

/// Settings of a host.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Threads that hash; `None`: half the cores.
    pub hash_threads: Option<usize>,
    /// Which VMs are indexed.
    pub filter: NameFilter,
    /// How trackers go about their work.
    pub tracker: TrackerOptions,
    /// eBPF hooks.
    pub hooks: HookOptions,
    /// Time from one sweep for VMs to the next.
    pub sweep: Duration,
    /// Most bytes of content kept of VMs that moved away.
    pub keep_bytes: u64,
    /// Where maps are kept so that the next daemon can go on with them; `None`: they end with this one.
    pub maps: Option<MapFolder>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            hash_threads: None,
            filter: NameFilter::all(),
            tracker: TrackerOptions::default(),
            hooks: HookOptions::default(),
            sweep: Duration::from_millis(500),
            keep_bytes: 0,
            maps: None,
        }
    }
}

/// Why a host could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Threads could not be started.
    #[error("cannot start the hashing threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// No randomness.
    #[error("the kernel gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The sweeping thread could not be started.
    #[error("cannot start the discovery thread: {0}")]
    Discovery(std::io::Error),
}

/// Why a VM was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No VM has this id, name or pid.
    #[error("no VM with id, name or pid {0:?} is indexed on this host; `memdex vms` lists them")]
    NotFound(String),
    /// More than one VM has this name.
    #[error("several VMs are called {name:?}: name one by its id ({})", ids.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// The ids of the VMs that have it.
        ids: Vec<String>,
    },
}

/// What all VMs of a host share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: HostOptions,
    pub(crate) hooks: Hooks,
    /// What tracking costs a guest on this machine.
    pub(crate) prices: Prices,
    pub(crate) pool: HashPool,
    pub(crate) index: ContentIndex,
    pub(crate) registry: Registry,
    events: broadcast::Sender<Event>,
    swept: AtomicBool,
    stopping: AtomicBool,
    /// A process was seen to map a VM's RAM: the sweeper is to find out who.
    pub(crate) mappings_changed: AtomicBool,
    /// Sweeps whose findings every tracker has been told of.
    pub(crate) sweeps: AtomicU64,
    /// This host's picture while it is sent to somebody.
    picture: picture::Current,
}

impl Shared {
    /// Whether the daemon is about to end: what it leaves is for the next one.
    pub(crate) fn ending(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Tells everybody who listens. Nobody listening is fine.
    pub(crate) fn announce(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Copies a page that probably has the content that is `wanted`, from the first place that says so. The copy is not hashed. `prefix` is that of the
    /// fingerprint.
    pub(crate) fn read_candidate(
        &self,
        prefix: u64,
        wanted: impl Fn(&Fingerprint) -> bool,
        page: &mut Page,
    ) -> bool {
        self.sources(prefix, &wanted).any(|(source, number)| source.read(number, page).is_some())
    }

    /// Copies content from wherever this host has it. The copy is hashed: what is returned is what `page` is, and is `wanted`.
    pub(crate) fn copy_content(
        &self,
        prefix: u64,
        wanted: impl Fn(&Fingerprint) -> bool,
        page: &mut Page,
    ) -> Option<Fingerprint> {
        self.sources(prefix, &wanted).find_map(|(source, number)| {
            source.read(number, page)?;
            let content = Fingerprint::new(*blake3::hash(page.as_slice()).as_bytes());
            wanted(&content).then_some(content)
        })
    }

    /// Pages that held what is wanted when they were last looked at.
    fn sources(
        &self,
        prefix: u64,
        wanted: impl Fn(&Fingerprint) -> bool,
    ) -> impl Iterator<Item = (Arc<dyn ContentSource>, u32)> {
        let mut places = Vec::new();
        self.index.candidates(prefix, &mut places);
        places.into_iter().filter_map(move |place| {
            let source = self.registry.by_map(place.map)?;
            wanted(&source.content(place.page)?).then_some((source, place.page))
        })
    }
}

/// A handle on the host; clones name the same one.
#[derive(Debug, Clone)]
pub struct Host {
    shared: Arc<Shared>,
    sweeper: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Figures of a host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostMetrics {
    /// The reverse index.
    pub index: IndexStatistics,
    /// Threads that hash.
    pub hash_threads: u64,
    /// VMs indexed.
    pub vms: u64,
    /// VMs that have ended since the daemon started.
    pub vms_gone: u64,
    /// What VMs that moved away left behind.
    pub kept: KeptFigures,
}

impl Host {
    /// Loads the hooks and begins to look for VMs.
    ///
    /// # Errors
    /// If the machine gives us no threads or no randomness. Missing abilities (root, BPF, userfaultfd) are no error here:
    /// each VM says what it has to do without.
    pub fn start(options: HostOptions) -> Result<Self, StartError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = options.hash_threads.unwrap_or_else(|| (cores / 2).max(1));
        let hooks = Hooks::load(&options.hooks);
        let shared = Arc::new(Shared {
            prices: Prices::measure(&hooks),
            hooks,
            pool: HashPool::new(threads)?,
            index: ContentIndex::new()?,
            registry: Registry::default(),
            events: broadcast::channel(EVENTS).0,
            swept: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            mappings_changed: AtomicBool::new(false),
            sweeps: AtomicU64::new(0),
            picture: picture::Current::default(),
            options,
        });
        // Loading the hooks read the kernel's types: tens of megabytes, for a moment.
        crate::heap::give_back();
        let sweeper = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("memdex-sweep".into()).spawn(move || sweep(&shared))
        };
        let sweeper = sweeper.map_err(StartError::Discovery)?;
        Ok(Self { shared, sweeper: Arc::new(Mutex::new(Some(sweeper))) })
    }

    /// Ends all tracking. What is known, and the protection in the VMMs, is left to the next daemon if maps are kept; else the VMMs are left unprotected.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Relaxed);
        let sweeper = self.sweeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sweeper) = sweeper {
            sweeper.thread().unpark();
            let _ = sweeper.join();
            // Nobody looks at marks any more.
            self.shared.hooks.let_go();
        }
    }

    /// The VMs, in the order they were found.
    #[must_use]
    pub fn vms(&self) -> Vec<Arc<Vm>> {
        self.shared.registry.all()
    }

    /// The VM with this id, name or pid.
    ///
    /// # Errors
    /// If there is none, or more than one of that name.
    pub fn find(&self, key: &str) -> Result<Arc<Vm>, FindError> {
        self.shared.registry.find(key)
    }

    /// What all VMs share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// The eBPF hooks.
    #[must_use]
    pub fn hooks(&self) -> &Hooks {
        &self.shared.hooks
    }

    /// Figures.
    #[must_use]
    pub fn metrics(&self) -> HostMetrics {
        HostMetrics {
            index: self.shared.index.statistics(),
            hash_threads: self.shared.pool.threads() as u64,
            vms: self.shared.registry.all().len() as u64,
            vms_gone: self.shared.registry.gone(),
            kept: self.shared.registry.kept.figures(),
        }
    }

    /// Whether the first sweep for VMs is done.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.shared.swept.load(Relaxed)
    }
}

/// The sweeping thread: looks what runs, and tells the registry.
fn sweep(shared: &Arc<Shared>) {
    let mut discovery = Discovery::new(shared.options.filter.clone());
    // What an earlier daemon left is judged by what the first sweep finds: it has to know of everybody who maps a VM's RAM.
    discovery.look_at_all_mappings();
    let mut slots = Slots::default();
    let mut gone = None;
    while !shared.stopping.load(Relaxed) {
        if shared.mappings_changed.swap(false, Relaxed) {
            discovery.look_at_all_mappings();
        }
        let found = discovery.sweep(slots.read(&shared.hooks).as_deref());
        shared.registry.update(shared, &found, |process| discovery.direct_io(process));
        shared.sweeps.fetch_add(1, SeqCst);
        for vm in shared.registry.all() {
            if let Some((at, found)) = discovery.direct_io(vm.process()) {
                vm.note_direct_io(at, found);
            }
        }
        shared.registry.give_up(shared, shared.options.keep_bytes);
        let gone_now = Some(shared.registry.gone());
        if let Some(maps) = shared.options.maps.as_ref().filter(|_| gone != gone_now) {
            maps.sweep();
            gone = gone_now;
        }
        shared.swept.store(true, Relaxed);
        std::thread::park_timeout(shared.options.sweep);
    }
    shared.registry.stop_all();
}

/// KVM's memory slots as the sweep wants them.
#[derive(Debug, Default)]
struct Slots {
    /// The last complete reading of each VM, by process and kernel address.
    complete: HashMap<(u32, u64), Vec<Memslot>>,
    failed: bool,
}

impl Slots {
    /// The slots of all VMs; `None` if the kernel does not tell. A VM whose slots were changing all the time while they
    /// were read keeps the ones it had: the next sweep is a moment away.
    fn read(&mut self, hooks: &Hooks) -> Option<Vec<KvmVm>> {
        let vms = match hooks.memslots() {
            Ok(vms) => vms,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%error, "VMs are found by their open files only");
                }
                return None;
            }
        };
        self.failed = false;
        let mut complete = HashMap::new();
        let mut out = Vec::new();
        for vm in vms {
            let key = (vm.pid, vm.address);
            let slots = if vm.complete { Some(vm.slots) } else { self.complete.remove(&key) };
            let Some(mut slots) = slots else { continue };
            // The last few slots are KVM's own (APIC page, TSS): no guest RAM.
            slots.retain(|slot| slot.id & 0xffff < USER_SLOTS);
            complete.insert(key, slots.clone());
            out.push(KvmVm { pid: vm.pid, fd: vm.fd, slots });
        }
        self.complete = complete;
        Some(out)
    }
}

/// Slots that belong to the VMM: `KVM_USER_MEM_SLOTS` of the kernel's `include/linux/kvm_host.h` on x86.
const USER_SLOTS: u32 = 32_764;
