//! Protects the guest images themselves: every other test trusts that they boot, become ready, and write.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memdex_tests::image::{self, READY, Workload};

/// A QEMU that ends with the test, whatever the test ends with.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(kernel: &image::Kernel, initrd: &Path, command_line: &str, serial: &Path, more: &[&str]) -> Guest {
    let child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512"])
        .args([
            "-machine",
            "q35",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-device",
            "virtio-rng-pci",
        ])
        .arg("-serial")
        .arg(format!("file:{}", serial.display()))
        .arg("-kernel")
        .arg(&kernel.vmlinuz)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", command_line])
        .args(more)
        .stdin(Stdio::null())
        .spawn()
        .expect("QEMU starts");
    Guest(child)
}

/// Waits until the guest has printed the words; fails with what it printed instead.
fn wait_for(words: &str, serial: &Path, guest: &mut Guest, limit: Duration) {
    let begin = Instant::now();
    loop {
        let console = String::from_utf8_lossy(&fs::read(serial).unwrap_or_default()).into_owned();
        if console.contains(words) {
            eprintln!("{words} after {:.1} s", begin.elapsed().as_secs_f64());
            return;
        }
        let ended = guest.0.try_wait().expect("a child can be asked");
        assert!(ended.is_none(), "QEMU ended ({ended:?}) without {words}; the console says:\n{console}");
        assert!(begin.elapsed() < limit, "no {words} within {limit:?}; the console says:\n{console}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_tiny_guest_becomes_ready_and_writes() {
    let guest = image::tiny_guest().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let serial = folder.path().join("serial");
    let command_line = guest.command_line(&Workload { rate: 100, ..Workload::default() });
    let mut running = start(&guest.kernel, &guest.initrd, &command_line, &serial, &[]);
    wait_for(READY, &serial, &mut running, Duration::from_secs(60));
    wait_for("MEMDEX-WRITES 100", &serial, &mut running, Duration::from_secs(60));
}

#[test]
fn the_debian_guest_starts_its_services_and_leaves_the_image_as_it_is() {
    let guest = image::debian_guest().unwrap();
    let written = fs::metadata(&guest.disk).unwrap().modified().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let serial = folder.path().join("serial");
    let command_line = guest.command_line(&Workload::default());
    let drive = guest.drive();
    let disk = ["-drive", &drive, "-device", "virtio-blk-pci,drive=root"];
    let mut running = start(&guest.kernel, &guest.initrd, &command_line, &serial, &disk);
    wait_for(READY, &serial, &mut running, Duration::from_secs(180));
    drop(running);
    assert_eq!(fs::metadata(&guest.disk).unwrap().modified().unwrap(), written);
}
