//! What a QEMU command line says about the VM: name, UUID, accelerator, RAM. Owns QEMU's option syntax; never reads
//! a process and never believes that what it says is there: discovery looks for it among the mappings.
//!
//! Anybody may start a program with any command line, so nothing here may panic, take long, or let a raw byte of it
//! through to a log, a path or an answer: names are cleaned, lengths are bounded, and what can't be understood is
//! as good as not said.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

use crate::vm::options::{Properties, parse_size, text};

/// Bytes of a command line that are looked at. Libvirt's longest are some tens of kilobytes.
pub(crate) const LIMIT: usize = 1 << 20;

/// RAM of a QEMU without `-m`.
const DEFAULT_MEMORY: u64 = 128 << 20;

/// Most memory backends taken from one command line.
const MAX_BACKENDS: usize = 1024;

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// `-name`, cleaned.
    pub(crate) name: Option<String>,
    /// `-uuid`, in the usual lower-case form.
    pub(crate) uuid: Option<String>,
    /// Accelerators in the order in which QEMU would try them.
    pub(crate) accelerators: Vec<String>,
    /// `-m`: bytes of main memory.
    pub(crate) memory: u64,
    /// RAM in the order of the guest: main memory first.
    pub(crate) backends: Vec<Backend>,
    /// Backends that are not guest RAM (shared memory devices).
    pub(crate) not_ram: Vec<Backend>,
    /// `-machine none`: QEMU was started to be asked about itself and has no memory.
    pub(crate) no_machine: bool,
    /// Type of the confidential-guest object, if there is one.
    pub(crate) confidential: Option<&'static str>,
}

/// A piece of RAM as the command line promises it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backend {
    /// `id=` of the object.
    id: String,
    /// Where it is to be found.
    pub(crate) kind: BackendKind,
    /// Bytes.
    pub(crate) size: u64,
    /// Whether the mapping is shared.
    pub(crate) share: bool,
}

/// Kinds of memory backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackendKind {
    /// A file, or a folder in which QEMU makes one and unlinks it.
    File {
        /// `mem-path=`
        path: PathBuf,
        /// `offset=`
        offset: u64,
    },
    /// A memfd of QEMU's.
    Memfd,
    /// Anonymous memory, or without a name if shared.
    Ram,
}

/// Options without an argument; any other takes the next word. From `qemu-options.hx` up to QEMU 10.
const FLAGS: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-kvm-pit",
    "no-kvm-pit-reinjection",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "old-param",
    "one-insn-per-tb",
    "only-migratable",
    "perfmap",
    "jitdump",
    "portrait",
    "preconfig",
    "run-with-async-teardown",
    "s",
    "sdl",
    "semihosting",
    "singlestep",
    "snapshot",
    "tdf",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
    "audio-help",
];

impl Options {
    /// Reads a command line as `/proc/PID/cmdline` shows it: words that end with a zero byte.
    pub(crate) fn parse(cmdline: &[u8]) -> Self {
        let mut raw = Raw::default();
        for (option, argument) in words(cmdline) {
            match argument {
                None if option == "enable-kvm" => raw.accelerators.push("kvm".to_owned()),
                None => {}
                Some(argument) => raw.option(option, argument),
            }
        }
        raw.finish()
    }
}

/// The options of a command line, each with its argument if it takes one.
pub(super) fn words(cmdline: &[u8]) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    let mut words = cmdline.split(|&byte| byte == 0).skip(1);
    std::iter::from_fn(move || {
        loop {
            let Some(option) = words.next()?.strip_prefix(b"-") else { continue };
            let option = option.strip_prefix(b"-").unwrap_or(option);
            let option = std::str::from_utf8(option).unwrap_or_default();
            if FLAGS.contains(&option) {
                return Some((option, None));
            }
            if let Some(argument) = words.next() {
                return Some((option, Some(argument)));
            }
        }
    })
}

/// What has been read so far.
#[derive(Default)]
struct Raw {
    name: Option<String>,
    uuid: Option<String>,
    accelerators: Vec<String>,
    machine_accelerators: Vec<String>,
    memory: Option<u64>,
    mem_path: Option<PathBuf>,
    machine_backend: Option<String>,
    numa_backends: Vec<String>,
    device_backends: Vec<String>,
    backends: Vec<Backend>,
    no_machine: bool,
    confidential: Option<&'static str>,
}

impl Raw {
    fn option(&mut self, option: &str, argument: &[u8]) {
        match option {
            "name" => {
                if let Some(name) = Properties::parse(argument, "guest").get("guest").and_then(clean_name) {
                    self.name = Some(name);
                }
            }
            "uuid" => self.uuid = parse_uuid(argument).or(self.uuid.take()),
            "accel" => {
                if let Some(name) = Properties::parse(argument, "accel").get("accel") {
                    self.accelerators.push(text(name, 32));
                }
            }
            "m" => {
                if let Some(size) = Properties::parse(argument, "size").get("size") {
                    self.memory = parse_size(size, 1 << 20).or(self.memory);
                }
            }
            "mem-path" => self.mem_path = Some(PathBuf::from(OsStr::from_bytes(argument))),
            "machine" | "M" => self.machine(&Properties::parse(argument, "type")),
            "numa" => {
                let numa = Properties::parse(argument, "type");
                self.numa_backends.extend(numa.get("memdev").map(|id| text(id, 256)));
            }
            "object" => self.object(&Properties::parse(argument, "qom-type")),
            "device" => {
                let device = Properties::parse(argument, "driver");
                if device.get("driver").is_some_and(|driver| driver.starts_with(b"ivshmem")) {
                    self.device_backends.extend(device.get("memdev").map(|id| text(id, 256)));
                }
            }
            _ => {}
        }
    }

    fn machine(&mut self, machine: &Properties) {
        self.no_machine = match machine.get("type") {
            Some(kind) => kind == b"none",
            None => self.no_machine,
        };
        if let Some(names) = machine.get("accel") {
            let names = text(names, 128);
            self.machine_accelerators = names.split(':').map(str::to_owned).collect();
        }
        if let Some(id) = machine.get("memory-backend") {
            self.machine_backend = Some(text(id, 256));
        }
        if let Some(size) = machine.get("memory.size").or_else(|| machine.get("memory")) {
            self.memory = parse_size(size, 1 << 20).or(self.memory);
        }
    }

    fn object(&mut self, object: &Properties) {
        let on = |key: &str| object.get(key).map(|value| matches!(value, b"on" | b"yes" | b"true" | b"y"));
        let path = |key: &str| PathBuf::from(OsStr::from_bytes(object.get(key).unwrap_or_default()));
        let size = |key: &str| object.get(key).and_then(|value| parse_size(value, 1));
        let (kind, share) = match object.get("qom-type").unwrap_or_default() {
            b"memory-backend-file" => {
                let kind = BackendKind::File { path: path("mem-path"), offset: size("offset").unwrap_or(0) };
                (kind, on("share").unwrap_or(false))
            }
            b"memory-backend-memfd" => (BackendKind::Memfd, on("share").unwrap_or(true)),
            b"memory-backend-ram" => (BackendKind::Ram, on("share").unwrap_or(false)),
            b"memory-backend-shm" => (BackendKind::Ram, true),
            b"sev-guest" => return self.confidential = Some("SEV"),
            b"sev-snp-guest" => return self.confidential = Some("SEV-SNP"),
            b"tdx-guest" => return self.confidential = Some("TDX"),
            b"pef-guest" => return self.confidential = Some("PEF"),
            b"s390-pv-guest" => return self.confidential = Some("Secure Execution"),
            _ => return,
        };
        if self.backends.len() < MAX_BACKENDS {
            let id = text(object.get("id").unwrap_or_default(), 256);
            self.backends.push(Backend { id, kind, size: size("size").unwrap_or(0), share });
        }
    }

    fn finish(self) -> Options {
        let memory = self.memory.unwrap_or(DEFAULT_MEMORY);
        let (not_ram, mut rest): (Vec<_>, Vec<_>) =
            self.backends.into_iter().partition(|backend| self.device_backends.contains(&backend.id));

        let mut backends = Vec::new();
        for id in self.machine_backend.iter().chain(&self.numa_backends) {
            if let Some(at) = rest.iter().position(|backend| backend.id == *id) {
                backends.push(rest.remove(at));
            }
        }
        // Main memory that no object describes is made by the machine itself.
        if backends.is_empty() && !self.no_machine {
            let kind = match self.mem_path {
                Some(path) => BackendKind::File { path, offset: 0 },
                None => BackendKind::Ram,
            };
            backends.push(Backend { id: String::new(), kind, size: memory, share: false });
        }
        backends.append(&mut rest);

        let mut accelerators = self.accelerators;
        if accelerators.is_empty() {
            accelerators = self.machine_accelerators;
        }
        Options {
            name: self.name,
            uuid: self.uuid,
            accelerators,
            memory,
            backends,
            not_ram,
            no_machine: self.no_machine,
            confidential: self.confidential,
        }
    }
}

/// Most characters of a VM's name.
const MAX_NAME: usize = 128;

/// Makes a name that is safe to print, to log, to put in a URL or to use as a file name: letters, digits and some
/// signs; anything else becomes `_`. None if nothing is left of it.
pub(crate) fn clean_name(raw: &[u8]) -> Option<String> {
    // A few bytes more than can be used, so that cutting inside a character changes nothing.
    let head = &raw[..raw.len().min(MAX_NAME * 4 + 4)];
    let mut name: String = String::from_utf8_lossy(head)
        .chars()
        .take(MAX_NAME)
        .map(|letter| match letter {
            '-' | '_' | '.' | ':' | '@' | '+' | '=' | ',' | ' ' => letter,
            _ if letter.is_alphanumeric() => letter,
            _ => '_',
        })
        .collect();
    // No hidden file, no parent folder, nothing that looks like an option or gets lost at the end of a column.
    name.truncate(name.trim_end().len());
    let plain = name.trim_start_matches(['.', '-', ' ']).len();
    let odd = name.len() - plain;
    name.replace_range(..odd, &"_".repeat(odd));
    name.chars().any(char::is_alphanumeric).then_some(name)
}

fn parse_uuid(raw: &[u8]) -> Option<String> {
    let digits: Vec<u8> = raw.iter().copied().take(64).filter(|&byte| byte != b'-').collect();
    if digits.len() != 32 || raw.len() > 36 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let digits = String::from_utf8(digits).ok()?.to_ascii_lowercase();
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

#[cfg(test)]
#[path = "cmdline_tests.rs"]
mod tests;
