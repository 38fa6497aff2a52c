//! Protects soundness for the most common production set-up: a guest whose disk is opened with `cache=none`, so that it writes guest memory by direct I/O. The
//! guest reads its disk all the time, and everything that the map claims must hold.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use memdex_tests::{
    Daemon, Qemu, Scratch, daemon, image, oracle,
    qemu::{Backend, Boot, Options},
    wait,
};

const DISK_MIB: usize = 48;

/// A disk of which no page is like another.
fn disk(path: PathBuf) -> PathBuf {
    let mut content = vec![0; DISK_MIB << 20];
    blake3::Hasher::new().update(b"memdex: a disk for direct I/O").finalize_xof().fill(&mut content);
    std::fs::write(&path, content).expect("room for a disk");
    path
}

fn heavy_reading(access: &'static str) {
    let scratch = Scratch::new("dioq");
    let workload = image::Workload { rate: 40, files: 24, file_kib: 64, seed: 9 };
    let mut options = Options::linux(160, Backend::File(scratch.shm("ram")), Boot::tiny(&workload, None));
    options.disk = Some(disk(scratch.path("disk.img")));
    options.disk_access = access;
    let mut guest = Qemu::start(&scratch, &scratch.name("q"), &options);
    let settle = ["--settle-seconds".to_owned(), "2".to_owned()];
    let daemon = daemon::Options { arguments: settle.into(), ..daemon::Options::default() };
    let daemon = Daemon::start_with(&scratch, "memdexd", &daemon);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), Duration::from_secs(5));
    guest.wait_for_serial(image::READY, Duration::from_secs(120));
    guest.wait_for_serial("MEMDEX-DISK read", Duration::from_secs(120));

    let (mut settled, mut unsettled) = (0, 0);
    for round in 0..12 {
        std::thread::sleep(Duration::from_millis(300));
        guest.pause();
        // What a disk has pinned shows with the next scan of the page table.
        std::thread::sleep(Duration::from_millis(700));
        let counts = daemon.vm_of(guest.pid()).expect("it runs").pages;
        (settled, unsettled) = (settled.max(counts.current), unsettled.max(counts.unsettled));
        oracle::compare_claims(&daemon, &vm).expect_exact(&format!("{access}, round {round}"));
        guest.resume();
    }
    guest.pause();
    wait::until("everything to settle", Duration::from_secs(30), || {
        let pages = daemon.vm_of(guest.pid()).expect("it runs").pages;
        (pages.stale == 0).then_some(())
    });
    oracle::compare(&daemon, &vm).expect_exact("at the end");
    daemon.verify(&vm.id);
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!(vm.tracking, "exact", "{:?}", vm.advisory_reasons);
    assert!(
        vm.direct_io.is_some_and(|file| file.ends_with("disk.img")),
        "it is said why pages are unsettled"
    );
    assert_eq!(vm.mismatches, 0);
    assert!(
        settled > 1000 && unsettled > 1000,
        "{settled} settled, {unsettled} unsettled: both are to be seen"
    );
    let reads = guest.serial().matches("MEMDEX-DISK read").count();
    eprintln!("{access}: {reads} readings of {DISK_MIB} MiB, up to {settled} pages settled, {unsettled} not");
    assert_eq!(guest.bad_check(), None);
}

#[test]
fn disk_with_native_aio() {
    heavy_reading("cache=none,aio=native");
}

#[test]
fn disk_with_threads() {
    heavy_reading("cache=none,aio=threads");
}

#[test]
fn disk_with_io_uring() {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if !Path::new("/proc/sys/kernel/io_uring_disabled").exists() || disabled.trim() != "0" {
        eprintln!("this kernel lets nobody use io_uring");
        return;
    }
    heavy_reading("cache=none,aio=io_uring");
}
