//! One VMM from sweep to sweep. Owns what is remembered of it (its parsed command line, the order of its regions,
//! the answers of slow questions) and makes its descriptor; never looks at other processes.

use std::{
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::vm::{
    cmdline::{self, Options, clean_name},
    descriptor::{Accelerator, VmDescriptor},
    doubts::{OpenFiles, is_kvm_vm},
    files::FileCache,
    kvm::{self, KvmVm},
    maps::{self, FileKey},
    processes::{ProcessDir, Stat},
    regions,
    spans::spans,
    table::Process,
};

/// How often a VMM's open files are looked at.
const FILES_EVERY: Duration = Duration::from_secs(1);
/// How long a VMM may take to map the RAM its command line promises before it is shown without.
const STARTING: Duration = Duration::from_millis(800);
/// Most bytes of a VMM's `maps`.
const MAX_MAPS: usize = 64 << 20;

/// The program a process runs.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its name.
    pub(crate) name: String,
    /// The command line, if it is a QEMU that runs machines.
    pub(crate) qemu: Option<Options>,
}

impl Program {
    /// Finds out what a process runs. Asked once for each program image.
    pub(crate) fn of(dir: &ProcessDir, stat: &Stat, buffer: &mut Vec<u8>) -> Self {
        let exe = dir.link("exe").ok();
        let exe = exe.as_deref().map(|path| file_name(path.as_os_str().as_bytes()));
        let comm = stat.comm.as_bytes();
        let whole = dir.read("cmdline", cmdline::LIMIT, buffer);
        if let Ok(false) = whole {
            // The last word is cut off, and a part of it would mean something else.
            let end = buffer.iter().rposition(|&byte| byte == 0).map_or(0, |at| at + 1);
            buffer.truncate(end);
        }
        let line: &[u8] = if whole.is_ok() { buffer } else { &[] };
        let first = line.split(|&byte| byte == 0).next().map(file_name);
        let candidates = [exe, first, Some(comm)];
        let qemu = candidates.iter().flatten().copied().find(|name| is_qemu(name));
        let name = qemu.or(exe).unwrap_or(comm);
        Self {
            name: clean_name(name).unwrap_or_else(|| "unknown".to_owned()),
            qemu: qemu.map(|_| Options::parse(line)),
        }
    }
}

/// Last part of a path, without the kernel's remark on replaced programs.
fn file_name(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// Whether a program of this name is a QEMU that runs machines. Some distributions wrap it under a hidden name.
fn is_qemu(name: &[u8]) -> bool {
    let name = name.strip_prefix(b".").unwrap_or(name);
    name.starts_with(b"qemu-system-") || name == b"qemu-kvm" || name.starts_with(b"qemu-kvm-")
}

/// A VMM under watch.
#[derive(Debug)]
pub(crate) struct Watched {
    name: String,
    files: FileCache,
    open: OpenFiles,
    /// When the open files were looked at.
    looked: Option<Instant>,
    /// Last result, and the order of its regions.
    last: Option<Arc<VmDescriptor>>,
    /// Files behind shared regions.
    pub(crate) ram_files: Vec<FileKey>,
    /// It is worth showing: its RAM was found, or it has had the time to map it.
    pub(crate) settled: bool,
}

/// What a sweep says about one VMM.
pub(crate) enum Outcome {
    /// It runs a VM; without the doubts that concern other processes.
    Vm(Arc<VmDescriptor>),
    /// It is gone, or is about to be another program.
    Gone,
    /// It could not be looked at this time (out of descriptors, no permission).
    Unknown,
}

/// Sources of one look.
pub(crate) struct Sources<'a> {
    pub(crate) process: &'a Process,
    pub(crate) program: &'a Program,
    /// KVM VMs of this process, as the kernel showed them; None if it could not be asked.
    pub(crate) kvm: Option<&'a [&'a KvmVm]>,
    pub(crate) now: Instant,
}

impl Watched {
    pub(crate) fn new(process: &Process, program: &Program) -> Self {
        let given = program.qemu.as_ref().and_then(|options| options.name.clone());
        let name = given.unwrap_or_else(|| {
            let program = if program.qemu.is_some() {
                "qemu".to_owned()
            } else {
                clean_name(process.stat.comm.as_bytes()).unwrap_or_else(|| "vm".to_owned())
            };
            format!("{program}-{}", process.pid)
        });
        Self {
            name,
            files: FileCache::default(),
            open: OpenFiles::default(),
            looked: None,
            last: None,
            ram_files: Vec::new(),
            settled: false,
        }
    }

    /// Looks at the VMM. Everything is read through one pinned folder, so it is all of one process; and if that process
    /// called exec meanwhile, the result is thrown away.
    pub(crate) fn look(&mut self, sources: &Sources<'_>, buffer: &mut Vec<u8>) -> Outcome {
        match self.try_look(sources, buffer) {
            Ok(Some(descriptor)) => {
                let descriptor = match self.last.take() {
                    Some(last) if *last == descriptor => last,
                    _ => Arc::new(descriptor),
                };
                Outcome::Vm(self.last.insert(descriptor).clone())
            }
            Ok(None) => Outcome::Gone,
            Err(error) if super::processes::gone(&error) => Outcome::Gone,
            Err(error) => {
                tracing::debug!(pid = sources.process.pid, %error, "this VMM could not be looked at");
                Outcome::Unknown
            }
        }
    }

    /// The descriptor of the last look.
    pub(crate) fn last(&self) -> Option<&Arc<VmDescriptor>> {
        self.last.as_ref()
    }

    /// When its open files were last looked at, and whether one was open for direct I/O.
    pub(crate) fn direct_io(&self) -> Option<(Instant, bool)> {
        self.looked.map(|at| (at, self.open.direct_io.is_some()))
    }

    fn try_look(&mut self, sources: &Sources<'_>, buffer: &mut Vec<u8>) -> io::Result<Option<VmDescriptor>> {
        let Sources { process, program, now, .. } = *sources;
        let dir = ProcessDir::open(process.pid)?;
        let same = |stat: &Stat| {
            stat.start_time == process.stat.start_time && stat.image == process.stat.image && !stat.ended()
        };
        if !same(&dir.stat(buffer)?) {
            return Ok(None);
        }
        if !dir.read("maps", MAX_MAPS, buffer)? {
            return Err(io::Error::other("it has too many mappings"));
        }
        let vmas = maps::parse(buffer);
        if vmas.is_empty() {
            // The process is being taken apart: its memory is gone already.
            return Ok(None);
        }
        if !self.settled || self.looked.is_none_or(|last| now.duration_since(last) >= FILES_EVERY) {
            self.open = OpenFiles::of(&dir, buffer)?;
            self.looked = Some(now);
        }
        // The kernel's answer was taken before this look, and only knows a pid: take it for this process only if the
        // descriptor is there.
        let vms: Option<Vec<&KvmVm>> = sources.kvm.map(|vms| {
            let here = |vm: &&&KvmVm| u32::try_from(vm.fd).is_ok_and(|fd| is_kvm_vm(&dir, fd));
            vms.iter().filter(here).copied().collect()
        });
        let (memslots, machines) = kvm::combine(vms.as_deref().unwrap_or_default());
        let has_kvm = machines > 0 || !self.open.kvm_vms.is_empty();
        if program.qemu.is_none() && !has_kvm {
            return Ok(None);
        }

        self.files.retain(&vmas);
        let spans = spans(&vmas, |vma| self.files.facts(&dir, vma));
        let mut found = match &program.qemu {
            Some(options) => regions::of_qemu(options, &spans, &memslots),
            None => regions::of_kvm(&spans, vms.as_ref().map(|_| memslots.as_slice())),
        };
        if !same(&dir.stat(buffer)?) {
            return Ok(None);
        }

        let accelerator = accelerator(program, has_kvm);
        let starting = found.incomplete || found.regions.is_empty() || accelerator == Accelerator::Unknown;
        // A QEMU without a machine (libvirt starts them to ask what they can do) never gets any RAM.
        let never =
            program.qemu.as_ref().is_some_and(|options| options.no_machine) && found.regions.is_empty();
        self.settled |= !never && (!starting || now.duration_since(process.seen) >= STARTING);
        if found.incomplete && !found.regions.is_empty() {
            found.doubts.push(
                "a part of the RAM that the command line names was not found among the mappings".to_owned(),
            );
        }
        let before = self.last.as_ref().map_or(&[][..], |last| &last.regions);
        let regions = regions::keep_order(found.regions, before);
        let mut doubts = self.open.doubts();
        doubts.append(&mut found.doubts);
        doubts.extend(regions::mapped_elsewhere(&spans, &regions));
        if machines > 1 {
            doubts.push(format!("the process runs {machines} KVM virtual machines, which are shown as one"));
        }
        if let Some(kind) = program.qemu.as_ref().and_then(|options| options.confidential) {
            doubts.push(format!("the guest is confidential ({kind}): its private memory can't be read"));
        }
        self.ram_files = found.files;
        Ok(Some(VmDescriptor {
            process: process.id(),
            name: self.name.clone(),
            uuid: program.qemu.as_ref().and_then(|options| options.uuid.clone()),
            vmm: program.name.clone(),
            accelerator,
            regions,
            memslots,
            direct_io: self.open.direct_io.clone(),
            dirty_ring: vmas.iter().any(kvm::is_dirty_ring),
            doubts,
        }))
    }
}

/// What is open tells more than what was asked for: `accel=kvm:tcg` may have ended in either.
fn accelerator(program: &Program, has_kvm: bool) -> Accelerator {
    match &program.qemu {
        _ if has_kvm => Accelerator::Kvm,
        Some(options)
            if options.accelerators.is_empty() && Path::new(&program.name) != Path::new("qemu-kvm") =>
        {
            Accelerator::Tcg
        }
        Some(options) if options.accelerators.iter().any(|name| name == "tcg") => Accelerator::Tcg,
        _ => Accelerator::Unknown,
    }
}
