//! Real QEMU guests. Owns the process and the monitor; images come from [`crate::image`].
//!
//! - [`options`]: what a guest is made of. [`command`]: the command line that becomes of it.
//! - [`check`]: what a guest says of its own memory, for guests that move.

mod check;
mod command;
mod options;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{Scratch, process::Process, qmp::Qmp, wait};

pub use check::{CHECK_PAGE, Checks};
pub use options::{Accelerator, Backend, Boot, Options};

/// How long QEMU may take to open its monitor.
const STARTUP: Duration = Duration::from_secs(10);

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    qmp: Qmp,
    serial: PathBuf,
    errors: PathBuf,
    memdex_monitor: PathBuf,
    ram_file: Option<PathBuf>,
    keep_ram: bool,
}

impl Qemu {
    /// Starts a guest; returns when its monitor answers. With `incoming` the guest is one that waits.
    ///
    /// # Panics
    /// If QEMU does not start.
    #[must_use]
    pub fn start(scratch: &Scratch, name: &str, options: &Options) -> Self {
        // QEMU's own folder, so that an ordinary user may make the monitors' sockets in it.
        let folder = scratch.path(name);
        fs::create_dir_all(&folder).expect("a folder can be made");
        command::give(&folder, options);
        let paths = command::Paths::in_folder(&folder);
        command::prepare_file(&paths.serial, options);
        let ram_file = match &options.backend {
            Backend::File(path) => {
                command::prepare_file(path, options);
                Some(path.clone())
            }
            Backend::Memfd | Backend::Plain => None,
        };
        if let Some(disk) = &options.disk {
            command::give(disk, options);
        }

        let mut command = command::command(scratch, name, options, &paths);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&paths.errors).expect("a file can be made"));
        let mut process = Process::start(name, &mut command);
        let (qmp, _) = wait::until(&format!("the monitor of {name}"), STARTUP, || {
            let words = || fs::read_to_string(&paths.errors).unwrap_or_default();
            assert!(process.is_running(), "QEMU ended: {}", words());
            Qmp::connect(&paths.monitor)
        });
        let command::Paths { serial, errors, memdex_monitor, .. } = paths;
        Self { process, qmp, serial, errors, memdex_monitor, ram_file, keep_ram: options.keep_ram }
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

    /// The socket of the monitor that is left to memdex, first on the command line.
    #[must_use]
    pub fn memdex_monitor(&self) -> &Path {
        &self.memdex_monitor
    }

    /// The RAM file, if it has one.
    #[must_use]
    pub fn ram_file(&self) -> Option<&Path> {
        self.ram_file.as_deref()
    }

    /// What QEMU says of the guest's state: `running`, `paused`, `inmigrate`, `postmigrate` and others.
    pub fn status(&mut self) -> String {
        let answer = self.qmp.run("query-status", &json!({}));
        answer["status"].as_str().unwrap_or_default().to_owned()
    }

    /// What QEMU has printed.
    #[must_use]
    pub fn words(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Waits for a state.
    ///
    /// # Panics
    /// If it does not come within `bound`.
    pub fn wait_for_status(&mut self, status: &str, bound: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            let found = self.status();
            if found == status {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < bound, "waited {bound:?} in vain for {status:?}, it is {found:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
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

    /// What the guest has printed. After a migration the rest is at the destination.
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

    /// Whether QEMU runs. Once it has ended this stays false, whatever the kernel gives its pid to.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits until QEMU has ended by itself, as after `quit`.
    ///
    /// # Panics
    /// If it does not within `bound`.
    pub fn wait_for_exit(&mut self, bound: Duration) -> ExitStatus {
        self.process.wait(bound).0
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
        if !self.keep_ram
            && let Some(file) = &self.ram_file
        {
            let _ = fs::remove_file(file);
        }
    }
}
