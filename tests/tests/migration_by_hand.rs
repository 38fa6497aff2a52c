//! Protects what migration is tested with: QEMU's two ends, the guests and their check of memory work together where
//! memdex has no part in it. The RAM file is copied while the guest stands still; QEMU sends the rest.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use memdex_tests::{
    PAGE, Qemu, Scratch,
    image::{self, Check, QemuProgram, Workload},
    qemu::{Accelerator, Backend, Boot, CHECK_PAGE, Checks, Options},
    wait,
};
use serde_json::json;

const CHECK: Check = Check { mib: 32, rate: 500, hot: 8 };
const WORKLOAD: Workload = Workload { rate: 20, files: 8, file_kib: 16, seed: 5 };
const BOUND: Duration = Duration::from_secs(30);

/// Moves a guest that stands still, without its RAM, and lets it run at the destination.
fn move_state(scratch: &Scratch, source: &mut Qemu, destination: &mut Qemu) {
    let capability = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    let uri = format!("unix:{}", scratch.path("migration").display());
    for end in [&mut *source, &mut *destination] {
        end.qmp().run("migrate-set-capabilities", &capability);
    }
    destination.qmp().run("migrate-incoming", &json!({"uri": uri}));
    source.qmp().run("migrate", &json!({"uri": uri}));
    source.wait_for_status("postmigrate", BOUND);
    destination.wait_for_status("paused", BOUND);
    destination.resume();
}

/// Overwrites a RAM file in place: a QEMU has it mapped.
fn fill_ram(file: &Path, bytes: &[u8]) {
    let file = File::options().write(true).open(file).expect("the destination's RAM file");
    file.write_all_at(bytes, 0).expect("it can be filled");
}

fn read_ram(file: &Path) -> Vec<u8> {
    fs::read(file).expect("the source's RAM file")
}

fn tiny(scratch: &Scratch, program: QemuProgram) -> Options {
    let boot = Boot::tiny(&WORKLOAD, Some(&CHECK));
    Options { qemu: Some(program), ..Options::linux(128, Backend::File(scratch.shm("source")), boot) }
}

fn programs() -> Vec<QemuProgram> {
    image::qemu_versions().expect("every QEMU there is")
}

#[test]
fn guest_goes_on_at_the_destination_with_its_memory_right() {
    for program in programs() {
        eprintln!("QEMU {}", program.version);
        let scratch = Scratch::new("hand");
        let options = tiny(&scratch, program);
        let mut source = Qemu::start(&scratch, &scratch.name("s"), &options);
        let there = options.destination(Backend::File(scratch.shm("destination")));
        let mut destination = Qemu::start(&scratch, &scratch.name("d"), &there);
        assert_eq!(destination.status(), "inmigrate");
        source.wait_for_serial(image::READY, Duration::from_secs(120));
        let before = source.check_all(Checks::default());
        source.pause();
        fill_ram(&scratch.shm("destination"), &read_ram(&scratch.shm("source")));
        move_state(&scratch, &mut source, &mut destination);
        let after = destination.check_all(before);
        assert!(after.writes > before.writes, "{before:?} {after:?}");
        assert_eq!(source.status(), "postmigrate");
        let when = |end: &mut Qemu, name: &str| {
            end.qmp().take_events().into_iter().rfind(|event| event.name == name).map(|event| event.at)
        };
        let (stopped, resumed) = (when(&mut source, "STOP"), when(&mut destination, "RESUME"));
        assert!(stopped.is_some() && stopped < resumed, "{stopped:?} {resumed:?}");
        source.qmp().run("quit", &json!({}));
        assert!(source.wait_for_exit(BOUND).success());
        assert!(!source.is_running() && destination.is_running());
    }
}

#[test]
fn guest_moves_from_an_old_qemu_to_a_new_one() {
    let programs = programs();
    let [old, new] = programs.as_slice() else {
        eprintln!("there is one QEMU only");
        return;
    };
    let scratch = Scratch::new("vers");
    let mut options = tiny(&scratch, old.clone());
    options.machine = format!("pc-q35-{}.{}", old.version.major, old.version.minor);
    let mut source = Qemu::start(&scratch, &scratch.name("s"), &options);
    let mut there = options.destination(Backend::File(scratch.shm("destination")));
    there.qemu = Some(new.clone());
    let mut destination = Qemu::start(&scratch, &scratch.name("d"), &there);
    source.wait_for_serial(image::READY, Duration::from_secs(120));
    let before = source.check_ok(Checks::default());
    source.pause();
    fill_ram(&scratch.shm("destination"), &read_ram(&scratch.shm("source")));
    move_state(&scratch, &mut source, &mut destination);
    destination.check_all(before);
}

#[test]
fn a_write_that_is_lost_is_found_at_the_destination() {
    let scratch = Scratch::new("lost");
    let options = tiny(&scratch, programs().remove(0));
    let mut source = Qemu::start(&scratch, &scratch.name("s"), &options);
    let there = options.destination(Backend::File(scratch.shm("destination")));
    let mut destination = Qemu::start(&scratch, &scratch.name("d"), &there);
    source.wait_for_serial(image::READY, Duration::from_secs(120));
    source.check_ok(Checks::default());
    source.pause();
    let old = read_ram(&scratch.shm("source"));
    source.resume();
    std::thread::sleep(Duration::from_secs(2));
    source.pause();
    let mut new = read_ram(&scratch.shm("source"));
    // Some pages of the check, the same ones before and after: only their sequence is another.
    let page = PAGE as usize;
    let pairs = old.chunks_exact(page).zip(new.chunks_exact_mut(page));
    let rewritten =
        pairs.filter(|(old, new)| old.starts_with(CHECK_PAGE) && old[..16] == new[..16] && old != new);
    let lost = rewritten.skip(8).take(16).map(|(old, new)| new.copy_from_slice(old)).count();
    assert_eq!(lost, 16, "the guest writes enough");
    fill_ram(&scratch.shm("destination"), &new);
    move_state(&scratch, &mut source, &mut destination);
    let (bad, _) = wait::until("the guest's complaint", BOUND, || destination.bad_check());
    eprintln!("{bad}");
}

#[test]
fn ram_file_that_is_there_already_keeps_its_content() {
    let scratch = Scratch::new("keep");
    let ram = scratch.shm("ram");
    let content = b"what it had when it left".repeat(1000);
    // In the middle of 16 MiB, where no firmware writes.
    let write = |file: &File| file.set_len(16 << 20).and_then(|()| file.write_all_at(&content, 9 << 20));
    File::create(&ram).and_then(|file| write(&file)).expect("a RAM file");
    let mut options = Options::firmware(16, Backend::File(ram.clone()), Accelerator::Tcg);
    options.keep_ram = true;
    drop(Qemu::start(&scratch, &scratch.name("k"), &options.destination(options.backend.clone())));
    assert_eq!(read_ram(&ram)[9 << 20..][..content.len()], content);
    options.keep_ram = false;
    drop(Qemu::start(&scratch, &scratch.name("k"), &options));
    assert!(!ram.exists());
}

#[test]
fn debian_guest_takes_its_disk_along() {
    for program in programs() {
        eprintln!("QEMU {}", program.version);
        let scratch = Scratch::new("deb");
        let ram = Backend::File(scratch.shm("source"));
        let mut options = Options::debian(512, ram, scratch.path("disk"), &Workload::default(), Some(&CHECK));
        options.qemu = Some(program);
        let mut source = Qemu::start(&scratch, &scratch.name("s"), &options);
        let there = options.destination(Backend::File(scratch.shm("destination")));
        let mut destination = Qemu::start(&scratch, &scratch.name("d"), &there);
        source.wait_for_serial(image::READY, Duration::from_secs(300));
        let before = source.check_ok(Checks::default());
        source.pause();
        fill_ram(&scratch.shm("destination"), &read_ram(&scratch.shm("source")));
        move_state(&scratch, &mut source, &mut destination);
        destination.check_all(before);
        let refused = source.qmp().try_run("cont", &json!({}));
        assert!(refused.is_err(), "the disk is the destination's now: {refused:?}");
        destination.check_ok(before);
    }
}
