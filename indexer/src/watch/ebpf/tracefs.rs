//! Where the running kernel's tracepoints keep their fields: the `format` files in tracefs.
//!
//! Owns finding (if need be mounting) tracefs and reading formats. Never attaches anything.

use std::{
    io,
    path::{Path, PathBuf},
};

use indexer_common::offsets::{Arguments, AsyncPage, DirtyRing, Fault, Mmap, Remaps};

/// Where tracefs belongs.
const PLACE: &str = "/sys/kernel/tracing";
/// Where older set-ups have it.
const OLD_PLACE: &str = "/sys/kernel/debug/tracing";

/// Why a tracepoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TracefsError {
    /// It is not mounted and could not be mounted.
    #[error(
        "the kernel's tracepoints cannot be read because tracefs is not mounted and mounting it failed ({0}): \
         run `mount -t tracefs tracefs /sys/kernel/tracing` as root"
    )]
    NotMounted(io::Error),
    /// This kernel does not have the event, or the module it belongs to is not loaded.
    #[error("this kernel has no tracepoint {0}{1}")]
    Missing(String, &'static str),
    /// The format file could not be read.
    #[error("the format of tracepoint {event} cannot be read: {error}")]
    Unreadable {
        /// Which tracepoint.
        event: String,
        /// What the system said.
        error: io::Error,
    },
    /// The event has no such field, or not with a size the programs can read.
    #[error(
        "tracepoint {event} has no field `{field}` of {size} bytes in this kernel, so memdexd cannot read it"
    )]
    Field {
        /// Which tracepoint.
        event: String,
        /// Which field.
        field: &'static str,
        /// Size looked for.
        size: u32,
    },
}

/// tracefs, mounted.
#[derive(Debug)]
pub(super) struct Tracefs {
    root: PathBuf,
}

/// The fields of a tracepoint.
#[derive(Debug)]
struct Format {
    event: String,
    text: String,
}

impl Tracefs {
    /// Finds tracefs, and mounts it at its place if it is nowhere.
    pub(super) fn find() -> Result<Self, TracefsError> {
        let mounted = |place: &str| Path::new(place).join("events").is_dir();
        if !mounted(PLACE) {
            if mounted(OLD_PLACE) {
                return Ok(Self { root: OLD_PLACE.into() });
            }
            rustix::mount::mount("tracefs", PLACE, "tracefs", rustix::mount::MountFlags::empty(), None)
                .map_err(|error| TracefsError::NotMounted(error.into()))?;
        }
        Ok(Self { root: PLACE.into() })
    }

    /// `kvm:kvm_page_fault`.
    pub(super) fn kvm_page_fault(&self) -> Result<Fault, TracefsError> {
        self.format("kvm", "kvm_page_fault")?.fault("fault_address")
    }

    /// `kvm:kvm_try_async_get_page`; none if this kernel's KVM never does that.
    pub(super) fn async_page(&self) -> Result<Option<AsyncPage>, TracefsError> {
        match self.format("kvm", "kvm_try_async_get_page") {
            Ok(format) => Ok(Some(AsyncPage { gfn: format.field("gfn", 8)?, unused: 0 })),
            Err(TracefsError::Missing(..)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `exceptions:page_fault_user` or `page_fault_kernel`.
    pub(super) fn page_fault(&self, event: &str) -> Result<Fault, TracefsError> {
        self.format("exceptions", event)?.fault("address")
    }

    /// `kvm:kvm_dirty_ring_push`.
    pub(super) fn dirty_ring(&self) -> Result<DirtyRing, TracefsError> {
        let format = self.format("kvm", "kvm_dirty_ring_push")?;
        Ok(DirtyRing { slot: format.field("slot", 4)?, offset: format.field("offset", 8)? })
    }

    /// The system calls that discard memory.
    pub(super) fn arguments(&self) -> Result<Arguments, TracefsError> {
        let fallocate = self.format("syscalls", "sys_enter_fallocate")?;
        let madvise = self.format("syscalls", "sys_enter_madvise")?;
        let process_madvise = self.format("syscalls", "sys_enter_process_madvise")?;
        let ftruncate = self.format("syscalls", "sys_enter_ftruncate")?;
        let mlock = self.format("syscalls", "sys_enter_mlock")?;
        Ok(Arguments {
            fallocate_fd: fallocate.field("fd", 8)?,
            fallocate_mode: fallocate.field("mode", 8)?,
            fallocate_offset: fallocate.field("offset", 8)?,
            fallocate_len: fallocate.field("len", 8)?,
            madvise_start: madvise.field("start", 8)?,
            madvise_len: madvise.field("len_in", 8)?,
            madvise_behavior: madvise.field("behavior", 8)?,
            process_madvise_behavior: process_madvise.field("behavior", 8)?,
            ftruncate_fd: ftruncate.field("fd", 8)?,
            mlock_start: mlock.field("start", 8)?,
            mlock_len: mlock.field("len", 8)?,
        })
    }

    /// The system calls that put other memory in the place of what was there.
    pub(super) fn remaps(&self) -> Result<Remaps, TracefsError> {
        let mmap = self.format("syscalls", "sys_enter_mmap")?;
        let munmap = self.format("syscalls", "sys_enter_munmap")?;
        let mremap = self.format("syscalls", "sys_enter_mremap")?;
        Ok(Remaps {
            mmap_addr: mmap.field("addr", 8)?,
            mmap_len: mmap.field("len", 8)?,
            mmap_flags: mmap.field("flags", 8)?,
            munmap_addr: munmap.field("addr", 8)?,
            munmap_len: munmap.field("len", 8)?,
            mremap_addr: mremap.field("addr", 8)?,
            mremap_old_len: mremap.field("old_len", 8)?,
            mremap_flags: mremap.field("flags", 8)?,
            counted: 0,
        })
    }

    /// `mmap`.
    pub(super) fn mmap(&self) -> Result<Mmap, TracefsError> {
        let mmap = self.format("syscalls", "sys_enter_mmap")?;
        let (prot, flags, fd) = (mmap.field("prot", 8)?, mmap.field("flags", 8)?, mmap.field("fd", 8)?);
        Ok(Mmap { prot, flags, fd, daemon: 0 })
    }

    fn format(&self, category: &str, name: &str) -> Result<Format, TracefsError> {
        let event = format!("{category}:{name}");
        match std::fs::read_to_string(self.root.join("events").join(category).join(name).join("format")) {
            Ok(text) => Ok(Format { event, text }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let hint = match category {
                    "kvm" => ": load the kvm module and start memdexd again",
                    "syscalls" => ": it was built without CONFIG_FTRACE_SYSCALLS",
                    _ => "",
                };
                Err(TracefsError::Missing(event, hint))
            }
            Err(error) => Err(TracefsError::Unreadable { event, error }),
        }
    }
}

impl Format {
    fn fault(&self, address: &'static str) -> Result<Fault, TracefsError> {
        // The write bit is in the lower half, whatever the width.
        let error_code = self.field("error_code", 8).or_else(|_| self.field("error_code", 4))?;
        Ok(Fault { address: self.field(address, 8)?, error_code })
    }

    /// Offset of a field, from a line like `field:TYPE NAME; offset:8; size:8; signed:0;` (with tabs).
    fn field(&self, name: &'static str, size: u32) -> Result<u32, TracefsError> {
        self.text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("field:"))
            .find_map(|line| {
                let mut parts = line.split(';').map(str::trim);
                let declared = parts.next()?.rsplit([' ', '*']).next()?;
                let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
                let found: u32 = parts.next()?.strip_prefix("size:")?.parse().ok()?;
                (declared == name && found == size).then_some(offset)
            })
            .ok_or_else(|| TracefsError::Field { event: self.event.clone(), field: name, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(text: &str) -> Format {
        Format { event: "a:b".into(), text: text.into() }
    }

    #[test]
    fn fields_are_found_by_name_and_size() {
        let format = format(
            "name: b\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
             \tfield:unsigned long address;\toffset:16;\tsize:8;\tsigned:0;\n\
             \tfield:const struct iovec * vec;\toffset:24;\tsize:8;\tsigned:0;\n\
             \tfield:unsigned int error_code;\toffset:32;\tsize:4;\tsigned:0;\n",
        );
        assert_eq!(format.field("address", 8).unwrap(), 16);
        assert_eq!(format.field("vec", 8).unwrap(), 24);
        assert_eq!(format.fault("address").unwrap(), Fault { address: 16, error_code: 32 });
        let error = format.field("address", 4).unwrap_err().to_string();
        assert!(error.contains("a:b") && error.contains("`address`"), "{error}");
    }

    #[test]
    fn garbage_is_no_field() {
        for text in
            ["", "field:", "field:int x", "field:int x;offset:a;size:4;", "field:int x;size:4;offset:8;"]
        {
            assert!(format(text).field("x", 4).is_err(), "{text:?}");
        }
    }
}
