//! Real QEMU guests. Owns the command line, the process and the monitor; images come from [`crate::image`].

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use crate::{Scratch, process::Process, qmp::Qmp, wait};

/// How long QEMU may take to open its monitor.
const STARTUP: Duration = Duration::from_secs(10);

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU's translator.
    Tcg,
    /// Hardware virtualization, or KVM's instruction emulator for guests that are only firmware.
    Kvm,
}

impl Accelerator {
    /// What a full guest can use on this machine: KVM needs vmx or svm for more than firmware.
    #[must_use]
    pub fn for_guests() -> Self {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let hardware = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        if hardware && Path::new("/dev/kvm").exists() { Self::Kvm } else { Self::Tcg }
    }
}

/// What the RAM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A shared file at this path.
    File(PathBuf),
    /// A memfd.
    Memfd,
    /// QEMU's private memory.
    Plain,
}

/// What a guest boots.
#[derive(Debug, Clone)]
pub struct Boot {
    /// `-kernel`
    pub kernel: PathBuf,
    /// `-initrd`
    pub initrd: PathBuf,
    /// `-append`
    pub command_line: String,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of RAM.
    pub mib: u64,
    /// What the RAM is.
    pub backend: Backend,
    /// What executes guest code.
    pub accelerator: Accelerator,
    /// Linux, or only firmware.
    pub boot: Option<Boot>,
    /// Run as this user.
    pub uid: Option<u32>,
    /// With a virtio balloon.
    pub balloon: bool,
    /// MiB of memory that can be plugged in later.
    pub hotplug_mib: u64,
    /// Value of `-name`, if it is not to be the name given at the start.
    pub name: Option<String>,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Options {
    /// A firmware-only guest of `mib` MiB.
    #[must_use]
    pub fn firmware(mib: u64, backend: Backend, accelerator: Accelerator) -> Self {
        Self {
            mib,
            backend,
            accelerator,
            boot: None,
            uid: None,
            balloon: false,
            hotplug_mib: 0,
            name: None,
            arguments: Vec::new(),
        }
    }

    /// A Linux guest of `mib` MiB under the best accelerator there is.
    #[must_use]
    pub fn linux(mib: u64, backend: Backend, boot: Boot) -> Self {
        Self { boot: Some(boot), ..Self::firmware(mib, backend, Accelerator::for_guests()) }
    }
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    qmp: Qmp,
    serial: PathBuf,
    ram_file: Option<PathBuf>,
}

impl Qemu {
    /// Starts a guest; returns when its monitor answers.
    ///
    /// # Panics
    /// If QEMU does not start.
    #[must_use]
    pub fn start(scratch: &Scratch, name: &str, options: &Options) -> Self {
        let Options { mib, uid, .. } = options;
        let own = |path: &Path| {
            if let Some(uid) = uid {
                std::os::unix::fs::chown(path, Some(*uid), Some(*uid)).expect("root can give files away");
            }
        };
        // QEMU's own folder, so that an ordinary user may make the monitor's socket in it.
        let folder = scratch.path(name);
        fs::create_dir_all(&folder).expect("a folder can be made");
        own(&folder);
        let (monitor, serial, errors) =
            (folder.join("monitor"), folder.join("serial"), folder.join("errors"));
        File::create(&serial).expect("a file can be made");
        own(&serial);

        let mut command = match uid {
            None => scratch.command("qemu-system-x86_64"),
            Some(uid) => {
                let mut command = scratch.command("setpriv");
                let uid = uid.to_string();
                command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "qemu-system-x86_64"]);
                command
            }
        };
        command.args(["-name", options.name.as_deref().unwrap_or(name)]);
        command.args(["-nodefaults", "-display", "none", "-no-user-config"]);
        command.args(["-accel", if options.accelerator == Accelerator::Kvm { "kvm" } else { "tcg" }]);
        let memory = if options.hotplug_mib > 0 {
            format!("{mib}M,slots=4,maxmem={}M", mib + options.hotplug_mib)
        } else {
            format!("{mib}M")
        };
        command.args(["-m", &memory]);
        let ram_file = match &options.backend {
            Backend::File(path) => {
                File::create(path).expect("the RAM file can be made");
                own(path);
                let path = path.display();
                command.arg("-object");
                command.arg(format!("memory-backend-file,id=ram,size={mib}M,mem-path={path},share=on"));
                command.args(["-machine", "q35,memory-backend=ram"]);
                Some(PathBuf::from(path.to_string()))
            }
            Backend::Memfd => {
                command.arg("-object");
                command.arg(format!("memory-backend-memfd,id=ram,size={mib}M,share=on"));
                command.args(["-machine", "q35,memory-backend=ram"]);
                None
            }
            Backend::Plain => {
                command.args(["-machine", "q35"]);
                None
            }
        };
        command.arg("-serial").arg(format!("file:{}", serial.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        if let Some(boot) = &options.boot {
            command.args(["-no-reboot", "-device", "virtio-rng-pci"]);
            command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initrd);
            command.args(["-append", &boot.command_line]);
        }
        if options.balloon {
            command.args(["-device", "virtio-balloon-pci,id=balloon"]);
        }
        command.args(&options.arguments);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(File::create(&errors).expect("a file can be made"));

        let mut process = Process::start(name, &mut command);
        let (qmp, _) = wait::until(&format!("the monitor of {name}"), STARTUP, || {
            let words = || fs::read_to_string(&errors).unwrap_or_default();
            assert!(process.is_running(), "QEMU ended: {}", words());
            Qmp::connect(&monitor)
        });
        Self { process, qmp, serial, ram_file }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Stops all vCPUs.
    pub fn pause(&mut self) {
        self.qmp.run("stop", &json!({}));
    }

    /// Lets them run.
    pub fn resume(&mut self) {
        self.qmp.run("cont", &json!({}));
    }

    /// Asks the guest to shrink or grow to this size; the guest takes its time.
    pub fn balloon(&mut self, mib: u64) {
        self.qmp.run("balloon", &json!({"value": mib << 20}));
    }

    /// What the guest has left, in MiB.
    pub fn balloon_mib(&mut self) -> u64 {
        self.qmp.run("query-balloon", &json!({}))["actual"].as_u64().unwrap_or(0) >> 20
    }

    /// Plugs in a DIMM of `mib` MiB.
    pub fn plug_memory(&mut self, id: &str, mib: u64) {
        let size = mib << 20;
        self.qmp.run(
            "object-add",
            &json!({"qom-type": "memory-backend-memfd", "id": format!("mem-{id}"), "size": size, "share": true}),
        );
        self.qmp.run("device_add", &json!({"driver": "pc-dimm", "id": id, "memdev": format!("mem-{id}")}));
    }

    /// What the guest has printed.
    #[must_use]
    pub fn serial(&self) -> String {
        fs::read(&self.serial).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until the guest has printed a text.
    ///
    /// # Panics
    /// If it does not, or QEMU ends.
    pub fn wait_for_serial(&mut self, text: &str, bound: Duration) -> Duration {
        let serial = self.serial.clone();
        let process = &mut self.process;
        let ((), took) = wait::until(&format!("{text:?} on the guest's serial port"), bound, || {
            assert!(process.is_running(), "QEMU ended");
            let bytes = fs::read(&serial).unwrap_or_default();
            bytes.windows(text.len()).any(|part| part == text.as_bytes()).then_some(())
        });
        took
    }

    /// Whether QEMU runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let serial = self.serial();
            let lines: Vec<&str> = serial.lines().collect();
            eprintln!("--- end of the guest's serial port:");
            lines[lines.len().saturating_sub(10)..].iter().for_each(|line| eprintln!("{line}"));
        }
        self.process.kill();
        if let Some(file) = &self.ram_file {
            let _ = fs::remove_file(file);
        }
    }
}
