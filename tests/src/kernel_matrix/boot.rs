//! One host in QEMU, from power-on to power-off or the end of its time. Owns the machine it is given.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::report::Line;
use crate::{
    image::{HostKernel, ImageError, qemu_versions},
    process::Process,
};

/// A host to be booted.
pub(super) struct Host<'a> {
    pub(super) kernel: &'a HostKernel,
    pub(super) initrd: &'a Path,
    /// Everything the kernel and the programs print goes here.
    pub(super) console: &'a Path,
    pub(super) limit: Duration,
    pub(super) without_kvm: bool,
}

/// How a host came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It powered off, or its kernel panicked.
    Off,
    /// It was ended.
    TimeLimit,
}

impl Host<'_> {
    /// Boots it and hands out its report line by line.
    pub(super) fn run(&self, mut each: impl FnMut(Line)) -> Result<Ended, ImageError> {
        let deadline = Instant::now() + self.limit;
        let mut qemu = Process::start("QEMU", &mut self.command()?);
        let report = qemu.child().stdout.take();
        let (sender, lines) = mpsc::channel();
        // Ends when QEMU does: then there is nothing more to read.
        let reader = std::thread::spawn(move || {
            let lines = report.into_iter().flat_map(|pipe| BufReader::new(pipe).split(b'\n'));
            for bytes in lines.map_while(io::Result::ok) {
                let line = Line::parse(&String::from_utf8_lossy(&bytes));
                if line.is_some_and(|line| sender.send(line).is_err()) {
                    return;
                }
            }
        });
        let ended = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => each(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ended::Off,
                Err(mpsc::RecvTimeoutError::Timeout) => break Ended::TimeLimit,
            }
        };
        qemu.kill();
        let _ = reader.join();
        Ok(ended)
    }

    fn command(&self) -> Result<Command, ImageError> {
        let wrap = |source| ImageError::Io { action: "writing", path: self.console.to_owned(), source };
        // QEMU's own complaints go there too.
        drop(File::create(self.console).map_err(wrap)?);
        let console = File::options().append(true).open(self.console).map_err(wrap)?;
        let qemu = qemu_versions()?.pop().ok_or_else(|| ImageError::NoProgram { program: "qemu".into() })?;
        let mut command = Command::new(&qemu.program);
        command.args(&qemu.arguments);
        command.args(["-name", "memdex-vm-test", "-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-machine", "pc", "-accel", "tcg,thread=multi,tb-size=512"]);
        // The one processor with virtualization and two-stage page tables that QEMU can emulate. Without AVX2: it reads 32 bytes of memory
        // for a VINSERTF128, which takes 16, and BLAKE3 has one at the end of a page, behind which there need not be another.
        command.args(["-cpu", "EPYC,+svm,+npt,-avx2", "-smp", "2", "-m", "2048", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel.vmlinuz).arg("-initrd").arg(self.initrd);
        let extra = if self.without_kvm { " memdex.without_kvm" } else { "" };
        command.arg("-append").arg(format!(
            "console=ttyS0 panic=-1 quiet no_timer_check mitigations=off random.trust_cpu=on{extra}"
        ));
        // First the console, then the report.
        command
            .arg("-chardev")
            .arg(format!("file,id=console,append=on,path={}", self.console.display()))
            .args(["-serial", "chardev:console"]);
        command.args(["-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(console);
        Ok(command)
    }
}
