//! The eBPF object: embedded, given the running kernel's offsets, loaded and attached hook by hook.
//!
//! Owns which program goes where and what is said when one cannot. One hook failing never keeps another from working.

use std::fmt::Display;

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    programs::{Iter, KProbe, ProgramError, TracePoint},
};
use indexer_common::offsets::{Kvm, Mmap, Offsets, Remaps};

use super::{HookStatus, attached::Attached, btf::Types, shared::Plain, tracefs::Tracefs};
use crate::watch::softdirty;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MEMDEX_EBPF_OBJECT_FILE"));

/// The inode of the first PID namespace (include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// System calls whose entry and exit are hooked.
const DISCARDS: [&str; 5] = ["fallocate", "madvise", "ftruncate", "process_madvise", "mlock"];

/// Log levels of aya-log: none below `error`, and all.
const SILENT: u8 = 0;
const DEBUG: u8 = 4;

/// A hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Guest page faults, by guest physical address.
    KvmPageFault,
    /// KVM's dirty ring.
    DirtyRing,
    /// Page faults of the VMM.
    FaultUser,
    /// Page faults of the kernel on the VMM's behalf.
    FaultKernel,
    /// System calls that discard memory.
    Discard,
    /// `mmap` of any process, for those that map a VM's RAM.
    Mmap,
    /// The iterator over memory slots.
    Memslots,
    /// The kernel's fault handler, whoever asks for a page.
    FaultHandler,
    /// Pages that are being migrated, and bits that others clear.
    Gate,
    /// System calls that put other memory in the place of what was there.
    Remap,
}

impl Hook {
    /// Those of every kernel.
    pub(super) const ALL: [Self; 8] = [
        Self::KvmPageFault,
        Self::DirtyRing,
        Self::FaultUser,
        Self::FaultKernel,
        Self::Discard,
        Self::Remap,
        Self::Mmap,
        Self::Memslots,
    ];

    /// Those that soft-dirty bits need beside them: where the kernel has something better, they would only cost.
    pub(super) const OF_SOFT_DIRTY: [Self; 2] = [Self::FaultHandler, Self::Gate];

    /// Those that there are on this kernel.
    pub(super) fn wanted() -> impl Iterator<Item = Self> {
        let more: &[Self] = if softdirty::wanted() { &Self::OF_SOFT_DIRTY } else { &[] };
        Self::ALL.into_iter().chain(more.iter().copied())
    }

    /// The name used in answers and metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::KvmPageFault => "ebpf:kvm_page_fault",
            Self::DirtyRing => "ebpf:kvm_dirty_ring_push",
            Self::FaultUser => "ebpf:page_fault_user",
            Self::FaultKernel => "ebpf:page_fault_kernel",
            Self::Discard => "ebpf:discard",
            Self::Mmap => "ebpf:mmap",
            Self::Memslots => "ebpf:memslots",
            Self::FaultHandler => "ebpf:handle_mm_fault",
            Self::Gate => "ebpf:migrate_pages",
            Self::Remap => "ebpf:remap",
        }
    }
}

/// Loads the object and attaches what can be attached. Never fails: what is missing is in the statuses.
pub(super) fn load(debug: bool, attached: &Attached) -> (Option<Ebpf>, Vec<HookStatus>) {
    let mut statuses = Vec::new();
    let object = load_with(debug, attached, &mut statuses).map_err(|reason| {
        statuses = Hook::wanted().map(|hook| HookStatus::missing(hook, &reason)).collect();
    });
    (object.ok(), statuses)
}

fn load_with(debug: bool, attached: &Attached, statuses: &mut Vec<HookStatus>) -> Result<Ebpf, String> {
    if std::fs::read_link("/proc/self/ns/pid")
        .is_ok_and(|namespace| namespace.as_os_str() != FIRST_PID_NAMESPACE)
    {
        return Err("eBPF programs see the host's process ids and memdexd runs in a PID namespace of its own, so no process could be \
                    recognized: run it in the host's PID namespace"
            .to_owned());
    }
    let types = Types::read();
    let tracefs = Tracefs::find();
    let kvm = from(&types, Types::kvm);
    let files = from(&types, Types::files);
    let kvm_page_fault = from(&tracefs, Tracefs::kvm_page_fault);
    let async_page = from(&tracefs, Tracefs::async_page);
    let dirty_ring = from(&tracefs, Tracefs::dirty_ring);
    let user = from(&tracefs, |tracefs| tracefs.page_fault("page_fault_user"));
    let kernel = from(&tracefs, |tracefs| tracefs.page_fault("page_fault_kernel"));
    let arguments = from(&tracefs, Tracefs::arguments);
    let mapping = from(&types, Types::mapping);
    let remaps = from(&tracefs, Tracefs::remaps);
    let mmap = from(&tracefs, Tracefs::mmap);
    drop(types); // tens of megabytes

    let offsets = Offsets {
        kvm_page_fault: kvm_page_fault.clone().unwrap_or_default(),
        page_fault_user: user.clone().unwrap_or_default(),
        page_fault_kernel: kernel.clone().unwrap_or_default(),
        dirty_ring: dirty_ring.clone().unwrap_or_default(),
        arguments: arguments.clone().unwrap_or_default(),
        mmap: Mmap { daemon: std::process::id(), ..mmap.clone().unwrap_or_default() },
        files: files.clone().unwrap_or_default(),
        kvm: Kvm { two_dimensional: u32::from(two_dimensional_paging()), ..kvm.clone().unwrap_or_default() },
        mapping: mapping.clone().unwrap_or_default(),
        remaps: Remaps { counted: u32::from(softdirty::wanted()), ..remaps.clone().unwrap_or_default() },
        async_page: async_page.clone().ok().flatten().unwrap_or_default(),
    };
    let offsets = Plain(offsets);
    let level = if debug { DEBUG } else { SILENT };
    let object = EbpfLoader::new()
        .btf(None) // only for relocations, which these programs do without
        .override_global("OFFSETS", &offsets, true)
        .override_global("AYA_LOG_LEVEL", &level, true)
        .load(OBJECT)
        .map_err(|error| refused(&error))?;
    let mut object = Loading { object, attached };

    let ready = |first: Result<(), String>, second: Result<(), String>| first.and(second);
    let known = |found: &Result<Kvm, String>| found.clone().map(drop);
    let mut results = vec![
        (
            Hook::KvmPageFault,
            ready(kvm_page_fault.map(drop), known(&kvm)).and_then(|()| {
                if async_page?.is_some() {
                    let event = ("kvm", "kvm_try_async_get_page".into());
                    tracepoint(&mut object, "kvm_try_async_get_page", &[event])?;
                }
                tracepoint(&mut object, "kvm_page_fault", &[("kvm", "kvm_page_fault".into())])
            }),
        ),
        (
            Hook::DirtyRing,
            ready(dirty_ring.map(drop), known(&kvm)).and_then(|()| {
                tracepoint(&mut object, "kvm_dirty_ring_reset", &[("kvm", "kvm_dirty_ring_reset".into())])?;
                tracepoint(&mut object, "kvm_dirty_ring_push", &[("kvm", "kvm_dirty_ring_push".into())])
            }),
        ),
        (
            Hook::FaultUser,
            user.and_then(|_| {
                tracepoint(&mut object, "page_fault_user", &[("exceptions", "page_fault_user".into())])
            }),
        ),
        (
            Hook::FaultKernel,
            kernel.and_then(|_| {
                tracepoint(&mut object, "page_fault_kernel", &[("exceptions", "page_fault_kernel".into())])
            }),
        ),
        (Hook::Discard, arguments.and_then(|_| discards(&mut object))),
        (Hook::Remap, remaps.and_then(|_| remap(&mut object))),
        (
            Hook::Mmap,
            ready(mmap.map(drop), files.clone().map(drop)).and_then(|()| {
                tracepoint(&mut object, "foreign_mmap", &[("syscalls", "sys_enter_mmap".into())])
            }),
        ),
        (Hook::Memslots, ready(known(&kvm), files.map(drop)).and_then(|()| iterator(&mut object))),
    ];
    if softdirty::wanted() {
        let known = mapping.map(drop);
        results.extend([
            (
                Hook::FaultHandler,
                known.clone().and_then(|()| kprobe(&mut object, "handle_mm_fault", "handle_mm_fault")),
            ),
            (Hook::Gate, known.and_then(|()| gate(&mut object))),
        ]);
    }
    *statuses = results
        .into_iter()
        .map(|(hook, result)| match result {
            Ok(()) => HookStatus { name: hook.name(), attached: true, reason: None },
            Err(reason) => HookStatus::missing(hook, &reason),
        })
        .collect();
    Ok(object.object)
}

/// The object while its programs are being attached.
struct Loading<'a> {
    object: Ebpf,
    attached: &'a Attached,
}

/// Whether KVM lets the processor translate guest addresses (EPT, NPT). Without, its page faults name guest *virtual* addresses.
fn two_dimensional_paging() -> bool {
    ["/sys/module/kvm_intel/parameters/ept", "/sys/module/kvm_amd/parameters/npt"]
        .iter()
        .any(|parameter| std::fs::read_to_string(parameter).is_ok_and(|value| value.starts_with(['Y', '1'])))
}

/// Uses a source of offsets, if there is one.
fn from<S, T, E: Display>(source: &Result<S, E>, find: impl FnOnce(&S) -> Result<T, E>) -> Result<T, String> {
    match source {
        Ok(source) => find(source).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn discards(object: &mut Loading<'_>) -> Result<(), String> {
    // Exits first, so that no call can be counted in and not out.
    let exits = DISCARDS.map(|call| ("syscalls", format!("sys_exit_{call}")));
    tracepoint(object, "exit_discard", &exits)?;
    for call in DISCARDS {
        tracepoint(object, &format!("enter_{call}"), &[("syscalls", format!("sys_enter_{call}"))])?;
    }
    Ok(())
}

fn remap(object: &mut Loading<'_>) -> Result<(), String> {
    let calls = ["mmap", "munmap", "mremap"];
    if softdirty::wanted() {
        // Exits first, as above.
        let exits = calls.map(|call| ("syscalls", format!("sys_exit_{call}")));
        tracepoint(object, "exit_remap", &exits)?;
    }
    for call in calls {
        tracepoint(object, &format!("enter_{call}"), &[("syscalls", format!("sys_enter_{call}"))])?;
    }
    Ok(())
}

fn gate(object: &mut Loading<'_>) -> Result<(), String> {
    // The end first, so that none can be counted in and not out.
    tracepoint(object, "migration_ends", &[("migrate", "mm_migrate_pages".into())])?;
    tracepoint(object, "migration_starts", &[("migrate", "mm_migrate_pages_start".into())])?;
    kprobe(object, "clear_refs_write", "clear_refs_write")
}

/// Loads a program and attaches it to the beginning of a function of the kernel.
fn kprobe(object: &mut Loading<'_>, name: &str, function: &str) -> Result<(), String> {
    let Loading { object, attached } = object;
    let found = object.program_mut(name).ok_or_else(|| format!("the eBPF object has no program `{name}`"))?;
    let result = <&mut KProbe>::try_from(found).and_then(|program| {
        program.load()?;
        let link = program.attach(function, 0)?;
        attached.keep(program.take_link(link)?);
        Ok(())
    });
    result.map_err(|error| rejected(name, &error))
}

/// Loads a program and attaches it to tracepoints by name, which works for those of modules too.
fn tracepoint(object: &mut Loading<'_>, name: &str, events: &[(&str, String)]) -> Result<(), String> {
    let Loading { object, attached } = object;
    let found = object.program_mut(name).ok_or_else(|| format!("the eBPF object has no program `{name}`"))?;
    let result = <&mut TracePoint>::try_from(found).and_then(|program| {
        program.load()?;
        let instructions = program.info().ok().and_then(|info| info.verified_instruction_count());
        tracing::debug!(target: "memdexd::ebpf", program = name, instructions, "the kernel has verified an eBPF program");
        events.iter().try_for_each(|(category, event)| {
            let link = program.attach(category, event)?;
            attached.keep(program.take_link(link)?);
            Ok(())
        })
    });
    result.map_err(|error| rejected(name, &error))
}

fn iterator(object: &mut Loading<'_>) -> Result<(), String> {
    let btf = Btf::from_sys_fs()
        .map_err(|error| format!("the kernel's type description cannot be read: {error}"))?;
    let found = object.object.program_mut("memslots").ok_or("the eBPF object has no program `memslots`")?;
    let result = <&mut Iter>::try_from(found).and_then(|program| program.load("task_file", &btf));
    result.map_err(|error| rejected("memslots", &error))
}

/// Says why nothing could be loaded at all.
fn refused(error: &EbpfError) -> String {
    let text = chain(error);
    if rustix::process::geteuid().is_root() {
        format!(
            "the kernel refuses the eBPF object ({text}); check that eBPF is built in and not locked down"
        )
    } else {
        format!(
            "memdexd may not load eBPF programs ({text}): run it as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN"
        )
    }
}

/// Says why one program could not be loaded or attached; the verifier's log goes to the log, it has thousands of lines.
fn rejected(program: &str, error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        tracing::debug!(target: "memdexd::ebpf", program, %verifier_log, "the kernel rejects an eBPF program");
        return format!("the kernel rejects the eBPF program `{program}`: {io_error}");
    }
    format!("the eBPF program `{program}` cannot be attached: {}", chain(error))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
