//! QEMU guests: Linux that boots, writes, has a disk and a balloon; and firmware that is reset and has memory plugged in.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use memdex_tests::{
    Qemu,
    image::Workload,
    qemu::{Accelerator, Backend, Boot, Options},
};
use serde_json::json;

use super::Guest;
use crate::{random::Random, world::World};

/// Size of the disk.
const DISK: u64 = 64 << 20;
/// Size of a DIMM that is plugged in.
const DIMM_MIB: u64 = 128;

/// See the module.
#[derive(Debug)]
pub(super) struct QemuGuest {
    qemu: Qemu,
    mib: u64,
    linux: bool,
    dimms: u64,
    disk: Option<PathBuf>,
}

impl QemuGuest {
    /// # Panics
    /// If QEMU does not start.
    pub(super) fn start(world: &World<'_>, prefix: &str, linux: bool, random: &mut Random) -> Self {
        let file = Backend::File(world.scratch.shm(&format!("ram-{prefix}")));
        let backend = random.one_of(&[Backend::Memfd, file, Backend::Plain]);
        let (mib, mut options);
        if linux {
            mib = random.one_of(&[128, 192, 256]);
            let workload = Workload {
                rate: random.between(10..60) as u32,
                files: random.between(16..64) as u32,
                file_kib: 64,
                seed: random.next() as u32 >> 1,
            };
            let mut boot = Boot::tiny(&workload, None);
            boot.command_line += " memdex.disk";
            options = Options::linux(mib, backend, boot);
            options.balloon = true;
            let disk = world.scratch.path(&format!("{prefix}.disk"));
            let sized = File::create(&disk).and_then(|file| file.set_len(DISK));
            sized.unwrap_or_else(|error| panic!("{}: {error}", disk.display()));
            options.disk = Some(disk);
        } else {
            mib = random.one_of(&[64, 96]);
            let accelerator = random.one_of(&[Accelerator::Kvm, Accelerator::Tcg]);
            options = Options::firmware(mib, backend, accelerator);
            options.hotplug_mib = 2 * DIMM_MIB;
        }
        // An ordinary user may not open /dev/kvm.
        let plain = random.chance(50) && options.accelerator == Accelerator::Tcg;
        options.uid = plain.then_some(65534);
        let disk = options.disk.clone();
        let qemu = Qemu::start(world.scratch, &world.scratch.name(prefix), &options);
        Self { qemu, mib, linux, dimms: 0, disk }
    }
}

impl Guest for QemuGuest {
    fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    fn memory_bytes(&self) -> u64 {
        (self.mib + self.dimms * DIMM_MIB) << 20
    }

    fn act(&mut self, random: &mut Random) {
        if self.linux {
            if random.chance(30) {
                self.qemu.balloon(random.between(self.mib * 2 / 3..self.mib + 1));
            }
        } else if random.chance(10) && self.dimms == 0 {
            self.qemu.plug_memory("dimm", DIMM_MIB);
            self.dimms += 1;
        } else if random.chance(30) {
            self.qemu.qmp().run("system_reset", &json!({}));
        }
    }

    fn pause(&mut self) {
        self.qemu.pause();
    }

    fn resume(&mut self) -> Result<(), String> {
        // QEMU's name for a vCPU that KVM could not run any further.
        if self.qemu.status() == "internal-error" {
            return Err(self.qemu.words());
        }
        self.qemu.resume();
        Ok(())
    }
}

impl Drop for QemuGuest {
    fn drop(&mut self) {
        self.qemu.kill();
        if let Some(disk) = &self.disk {
            let _ = fs::remove_file(disk);
        }
    }
}
