//! The eBPF hooks: what the kernel saw of writes and discards, without asking anybody for anything.
//!
//! Owns loading the programs and the marks they set. Never decides that a page is current or stale: a mark only says where to look.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use aya::{Ebpf, maps::MapError, sys::Stats};

mod attached;
mod btf;
mod gate;
mod layout;
mod left_out;
mod log;
mod marks;
mod memslots;
mod object;
mod program;
mod registry;
mod shared;
mod tracefs;

use self::{attached::Attached, layout::Plan, object::Hook, registry::Registry};
pub(crate) use self::{gate::Quiet, left_out::LeftOut};
pub use self::{
    layout::{MarkLayout, MarkRegion, RamFile},
    marks::{Marks, Taken},
    memslots::{KvmVm, MemslotsError},
};
use super::witnesses::LEFT_OUT;

/// How to load the hooks.
#[derive(Debug, Clone, Copy, Default)]
pub struct HookOptions {
    /// Log every mark and every event that is no page's, through tracing (target `memdexd::ebpf`). Slow: for developers of hooks.
    pub debug: bool,
    /// Load nothing: the operator has left them out.
    pub left_out: bool,
}

/// State of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookStatus {
    /// For example `ebpf:kvm_page_fault`.
    pub name: &'static str,
    /// Whether it is at work.
    pub attached: bool,
    /// Why not, in a sentence.
    pub reason: Option<String>,
}

/// What a program has cost so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStatistics {
    /// Name of the program.
    pub name: String,
    /// Times it ran.
    pub runs: u64,
    /// Time it ran for, in nanoseconds.
    pub nanoseconds: u64,
    /// Times the kernel left it out because another program was running on that processor, or a map was being changed there. Only kernels that preempt themselves do
    /// so; trackers notice, and look at everything.
    pub missed: u64,
}

/// Why a process cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The programs are not loaded.
    #[error("process {pid} cannot be watched with eBPF: {reason}")]
    NotLoaded {
        /// Process id.
        pid: u32,
        /// Why they are not.
        reason: String,
    },
    /// The kernel refuses the map for its marks.
    #[error(
        "process {pid} cannot be watched with eBPF because the kernel refuses a map for its marks: {error}"
    )]
    Map {
        /// Process id.
        pid: u32,
        /// What the kernel said.
        error: MapError,
    },
    /// The map cannot be mapped into the daemon.
    #[error(
        "process {pid} cannot be watched with eBPF because the map for its marks cannot be mapped: {error}"
    )]
    Mapping {
        /// Process id.
        pid: u32,
        /// What the kernel said.
        error: std::io::Error,
    },
}

/// The hooks. Dropping them and all [`Marks`] detaches the programs.
#[derive(Debug)]
pub struct Hooks {
    statuses: Vec<HookStatus>,
    loaded: Option<Loaded>,
}

struct Loaded {
    registry: Arc<Registry>,
    attached: Attached,
    /// Holds the programs.
    object: Mutex<Ebpf>,
    left_out: left_out::Counts,
    /// Makes the kernel measure the programs for as long as it is open.
    _statistics: Option<std::os::fd::OwnedFd>,
    _log: Option<log::Forwarding>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Hooks {
    /// Loads and attaches what this kernel allows. Never fails: what is missing says so in [`Hooks::status`], and the daemon goes on without.
    ///
    /// # Minimum kernel version
    ///
    /// 6.1, with BTF and tracefs; needs root.
    #[must_use]
    pub fn load(options: &HookOptions) -> Self {
        if options.left_out {
            let statuses = Hook::ALL.map(|hook| HookStatus::missing(hook, LEFT_OUT)).into();
            return Self { statuses, loaded: None };
        }
        let attached = Attached::default();
        let (object, statuses) = object::load(options.debug, &attached);
        let Some(mut object) = object else { return Self { statuses, loaded: None } };
        let log = options.debug.then(|| log::forward(&mut object)).and_then(|forwarding| {
            forwarding
                .inspect_err(|error| tracing::warn!(%error, "what the eBPF programs log cannot be shown"))
                .ok()
        });
        let registry = match Registry::new(&mut object) {
            Ok(registry) => Arc::new(registry),
            Err(error) => {
                let reason = format!("the maps of the eBPF object cannot be used: {error}");
                let statuses = Hook::wanted().map(|hook| HookStatus::missing(hook, &reason)).collect();
                return Self { statuses, loaded: None };
            }
        };
        let statistics = aya::sys::enable_stats(Stats::RunTime)
            .inspect_err(|error| tracing::info!(%error, "the cost of the eBPF programs cannot be measured"))
            .ok();
        let left_out = left_out::Counts::of(&object);
        let object = Mutex::new(object);
        let loaded = Loaded { registry, attached, object, left_out, _statistics: statistics, _log: log };
        Self { statuses, loaded: Some(loaded) }
    }

    /// Detaches the programs, in less time than it would take this process to end with them. Nothing is seen from here on.
    pub(crate) fn let_go(&self) {
        if let Some(loaded) = &self.loaded {
            loaded.attached.let_go();
        }
    }

    /// State of every hook.
    #[must_use]
    pub fn status(&self) -> Vec<HookStatus> {
        self.statuses.clone()
    }

    /// What each loaded program has cost since it was loaded.
    #[must_use]
    pub fn statistics(&self) -> Vec<ProgramStatistics> {
        let Some(loaded) = &self.loaded else { return Vec::new() };
        let object = loaded.object.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = object
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?; // not loaded
                let nanoseconds = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                let missed = left_out::missed(program).unwrap_or(0);
                Some(ProgramStatistics { name: name.to_owned(), runs: info.run_count(), nanoseconds, missed })
            })
            .collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// How often programs were left out, and a moment before which none was that is not counted. To be looked at after the marks have been taken.
    pub(crate) fn left_out(&self) -> (Instant, LeftOut) {
        self.loaded
            .as_ref()
            .map_or_else(|| (Instant::now(), LeftOut::default()), |loaded| loaded.left_out.look())
    }

    /// Begins to mark the pages of a process, or goes on with another layout.
    ///
    /// In the second case keep the old [`Marks`] until this has returned, take from them one last time, then drop them: nothing is lost.
    ///
    /// # Errors
    ///
    /// If the programs are not loaded or the kernel refuses memory for the marks (two bytes a page).
    pub fn track(&self, pid: u32, layout: &MarkLayout) -> Result<Marks, TrackError> {
        let Some(loaded) = &self.loaded else {
            return Err(TrackError::NotLoaded { pid, reason: self.reason(Hook::FaultUser) });
        };
        // Asked for anew, because the tables are checked against the generation they were made from.
        let kvm = if layout.memslots.is_empty() { Vec::new() } else { self.memslots().unwrap_or_default() };
        let kvm: Vec<KvmVm> = kvm.into_iter().filter(|vm| vm.pid == pid).collect();
        let plan = Plan::new(layout, &kvm);
        let (serial, mapping) = loaded.registry.track(pid, &plan)?;
        Ok(Marks { registry: Arc::clone(&loaded.registry), pid, serial, header: plan.header, mapping })
    }

    /// Every KVM VM on the host with its memory slots.
    ///
    /// # Errors
    ///
    /// If the iterator is not loaded or the kernel refuses to run it.
    pub fn memslots(&self) -> Result<Vec<KvmVm>, MemslotsError> {
        let loaded = self.loaded.as_ref().filter(|_| self.attached(Hook::Memslots));
        let Some(loaded) = loaded else { return Err(MemslotsError::NotLoaded(self.reason(Hook::Memslots))) };
        memslots::read(&mut loaded.object.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether system calls that discard memory are seen.
    #[must_use]
    pub fn discards_attached(&self) -> bool {
        self.attached(Hook::Discard)
    }

    /// Whether system calls that put other memory in the place of what was there are seen.
    #[must_use]
    pub fn remaps_attached(&self) -> bool {
        self.attached(Hook::Remap)
    }

    /// Whether other processes that map a VM's RAM are seen as they do.
    #[must_use]
    pub fn mappings_attached(&self) -> bool {
        self.attached(Hook::Mmap)
    }

    /// Whether page faults that precede a write are seen.
    #[must_use]
    pub fn faults_attached(&self) -> bool {
        self.attached(Hook::FaultUser) && self.attached(Hook::FaultKernel)
    }

    /// Whether guest faults that KVM resolves by itself are seen. On hardware with two-stage page tables they raise no page fault of
    /// the VMM.
    #[must_use]
    pub fn guest_faults_attached(&self) -> bool {
        self.attached(Hook::KvmPageFault)
    }

    /// Why KVM's dirty ring is not listened to, if it is not.
    #[must_use]
    pub fn dirty_ring_missing(&self) -> Option<String> {
        (!self.attached(Hook::DirtyRing)).then(|| self.reason(Hook::DirtyRing))
    }

    fn attached(&self, hook: Hook) -> bool {
        self.statuses.iter().any(|status| status.name == hook.name() && status.attached)
    }

    fn reason(&self, hook: Hook) -> String {
        let status = self.statuses.iter().find(|status| status.name == hook.name());
        status.and_then(|status| status.reason.clone()).unwrap_or_else(|| "it is not loaded".to_owned())
    }
}

impl HookStatus {
    fn missing(hook: Hook, reason: &str) -> Self {
        Self { name: hook.name(), attached: false, reason: Some(reason.to_owned()) }
    }
}
