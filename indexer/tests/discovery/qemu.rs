//! QEMU's ways to have RAM. Where a region stands is checked against QEMU's own answer (`gpa2hva`).

use std::{os::unix::fs::MetadataExt, sync::Arc};

use indexer::{
    units::Hva,
    vm::descriptor::{Accelerator, Backing},
};
use serde_json::json;

use crate::harness::{Helper, NOTICED, PATIENCE, Process, Qemu, Scratch, Watch};

const MIB: u64 = 1 << 20;

#[test]
fn a_ram_file_on_shm_is_found_with_all_its_properties() {
    let ram = Scratch::new("/dev/shm", "ram");
    let mut qemu = Qemu::start(&[
        "-accel",
        "tcg",
        "-m",
        "64M",
        "-name",
        "guest=web-1,debug-threads=on",
        "-uuid",
        "C7A5FDBD-EDAF-9455-926A-D65C16DB1809",
        "-object",
        &format!("memory-backend-file,id=m,size=64M,mem-path={},share=on", ram.path()),
        "-machine",
        "q35,memory-backend=m",
    ]);
    let mut watch = Watch::new();
    let vm = watch.until(qemu.pid(), NOTICED, "the VM", |_| true);
    assert_eq!((vm.name.as_str(), vm.vmm.as_str()), ("web-1", "qemu-system-x86_64"));
    assert_eq!(vm.uuid.as_deref(), Some("c7a5fdbd-edaf-9455-926a-d65c16db1809"));
    assert_eq!(vm.accelerator, Accelerator::Tcg);
    assert_eq!((vm.regions.len(), vm.pages(), vm.doubts.len()), (1, 64 * MIB / 4096, 0), "{vm:#?}");
    let region = &vm.regions[0];
    assert_eq!((region.start, region.len), (Hva(qemu.host_address(0)), 64 * MIB));
    assert_eq!(region.mapping_page_size, 4096);
    let file = std::fs::metadata(&ram.0).unwrap();
    assert_eq!(
        region.backing,
        Backing::SharedFile {
            device: file.dev(),
            inode: file.ino(),
            offset: 0,
            path: ram.0.clone(),
            trackable: true
        }
    );
    // Nothing changes, so nothing is new.
    assert!(Arc::ptr_eq(&vm, &watch.look(qemu.pid()).unwrap()));

    // The file loses its name; the VM keeps its RAM.
    std::fs::remove_file(&ram.0).unwrap();
    let vm = watch.look(qemu.pid()).unwrap();
    assert!(
        matches!(&vm.regions[0].backing, Backing::SharedFile { trackable: true, inode, .. } if *inode == file.ino())
    );
}

#[test]
fn memfd_and_plain_memory_stand_where_qemu_says() {
    for (arguments, backing) in [
        (
            &["-object", "memory-backend-memfd,id=m,size=48M", "-machine", "pc,memory-backend=m", "-m", "48"]
                [..],
            "shared",
        ),
        (&["-m", "48"], "anonymous"),
        (&["-m", "48", "-mem-path", "/dev/shm"], "private"),
        (
            &[
                "-object",
                r#"{"qom-type":"memory-backend-ram","id":"m","size":50331648,"share":true}"#,
                "-machine",
                "q35,memory-backend=m",
                "-m",
                "48",
            ],
            "shared",
        ),
        (
            &["-object", "memory-backend-ram,id=m,size=48M", "-machine", "q35,memory-backend=m", "-m", "48"],
            "anonymous",
        ),
    ] {
        let mut qemu = Qemu::start(arguments);
        let vm = Watch::new().until(qemu.pid(), NOTICED, "the VM", |_| true);
        assert_eq!(vm.name, format!("qemu-{}", qemu.pid()));
        assert_eq!(vm.regions.len(), 1, "{arguments:?}: {vm:#?}");
        assert_eq!(
            (vm.regions[0].start, vm.regions[0].len),
            (Hva(qemu.host_address(0)), 48 * MIB),
            "{arguments:?}"
        );
        let is = match &vm.regions[0].backing {
            Backing::SharedFile { trackable, .. } => {
                if *trackable {
                    "shared"
                } else {
                    "untrackable"
                }
            }
            Backing::PrivateFile { .. } => "private",
            Backing::Anonymous => "anonymous",
        };
        assert_eq!(is, backing, "{arguments:?}");
        assert_eq!(vm.doubts, [""; 0]);
    }
}

#[test]
fn numa_nodes_are_regions_in_guest_order() {
    let (low, high) = (Scratch::new("/dev/shm", "low"), Scratch::new("/dev/shm", "high"));
    let mut qemu = Qemu::start(&[
        "-m",
        "96M",
        "-object",
        &format!("memory-backend-file,id=b,size=64M,mem-path={},share=on", high.path()),
        "-object",
        &format!("memory-backend-file,id=a,size=32M,mem-path={},share=on", low.path()),
        "-numa",
        "node,memdev=a",
        "-numa",
        "node,memdev=b",
    ]);
    let vm = Watch::new().until(qemu.pid(), NOTICED, "the VM", |_| true);
    let places: Vec<_> = vm.regions.iter().map(|region| (region.start, region.len)).collect();
    let expected = [(Hva(qemu.host_address(0)), 32 * MIB), (Hva(qemu.host_address(32 * MIB)), 64 * MIB)];
    assert_eq!(places, expected);
}

#[test]
fn memory_plugged_in_and_out_is_noticed_and_the_rest_keeps_its_place() {
    let mut qemu = Qemu::start(&[
        "-m",
        "64M,slots=4,maxmem=1G",
        "-object",
        "memory-backend-memfd,id=m,size=64M",
        "-machine",
        "q35,memory-backend=m",
    ]);
    let mut watch = Watch::new();
    let before = watch.until(qemu.pid(), NOTICED, "the VM", |_| true);

    let plugged = Scratch::new("/dev/shm", "dimm");
    let dimm = json!({ "qom-type": "memory-backend-file", "id": "d0", "size": 128 * MIB, "mem-path": plugged.path(), "share": true });
    qemu.execute("object-add", &dimm);
    qemu.execute("device_add", &json!({ "driver": "pc-dimm", "id": "dimm0", "memdev": "d0" }));
    let vm = watch.until(qemu.pid(), NOTICED, "the DIMM", |vm| vm.regions.len() == 2);
    assert_eq!(vm.regions[0], before.regions[0]);
    assert_eq!((vm.regions[1].start, vm.regions[1].len), (Hva(qemu.host_address(1 << 32)), 128 * MIB));

    qemu.execute("object-add", &json!({ "qom-type": "memory-backend-memfd", "id": "d1", "size": 32 * MIB }));
    let vm = watch.until(qemu.pid(), NOTICED, "the second", |vm| vm.regions.len() == 3);
    assert_eq!(vm.regions[2].name, "memfd:memory-backend-memfd");
    let kept = vm.regions[..2].to_vec();
    qemu.execute("object-del", &json!({ "id": "d1" }));
    let vm = watch.until(qemu.pid(), NOTICED, "its end", |vm| vm.regions.len() == 2);
    assert_eq!(vm.regions, kept);
}

#[test]
fn a_foreign_writable_mapping_is_named_and_goes_again() {
    let ram = Scratch::new("/dev/shm", "ram");
    let qemu = Qemu::start(&[
        "-object",
        &format!("memory-backend-file,id=m,size=16M,mem-path={},share=on", ram.path()),
        "-machine",
        "q35,memory-backend=m",
        "-m",
        "16",
    ]);
    let mut watch = Watch::new();
    watch.until(qemu.pid(), NOTICED, "the VM", |vm| vm.doubts.is_empty());
    let other = Helper::start(&format!("map {}", ram.path()));
    let named = format!("process {} ", other.pid());
    let slow = PATIENCE / 2;
    watch.until(qemu.pid(), slow, "the foreign mapping", |vm| {
        vm.doubts.iter().any(|doubt| doubt.starts_with(&named))
    });
    drop(other);
    watch.until(qemu.pid(), NOTICED, "its end", |vm| vm.doubts.is_empty());
}

#[test]
fn direct_io_of_a_disk_is_seen_and_no_doubt() {
    let disk = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "disk");
    std::fs::write(&disk.0, vec![0; 1 << 20]).unwrap();
    for (cache, aio, direct) in
        [("none", "threads", true), ("none", "native", true), ("writeback", "threads", false)]
    {
        let drive = format!("if=virtio,format=raw,file={},cache={cache},aio={aio}", disk.path());
        let qemu = Qemu::start(&["-m", "16", "-drive", &drive]);
        let vm = Watch::new().until(qemu.pid(), NOTICED, "the VM", |_| true);
        assert_eq!(vm.direct_io.is_some(), direct, "cache={cache}: {:?}", vm.direct_io);
        assert!(vm.doubts.is_empty(), "cache={cache}: {:?}", vm.doubts);
    }
}

#[test]
fn with_kvm_the_accelerator_is_what_is_open() {
    let mut qemu = Qemu::start(&["-accel", "kvm", "-accel", "tcg", "-m", "48"]);
    let mut watch = Watch::new();
    let vm = watch.until(qemu.pid(), NOTICED, "the VM", |_| true);
    assert_eq!(vm.accelerator, Accelerator::Kvm);
    assert_eq!((vm.regions.len(), vm.regions[0].start), (1, Hva(qemu.host_address(0))));
}

#[test]
fn a_daemonized_qemu_is_one_vm() {
    let pidfile = Scratch::new("/tmp", "pid");
    let log = Scratch::new("/tmp", "log");
    let output = std::fs::File::create(&log.0).unwrap();
    let mut command = std::process::Command::new("qemu-system-x86_64");
    command.args([
        "-S",
        "-display",
        "none",
        "-nodefaults",
        "-m",
        "16",
        "-name",
        "memdex-daemonized",
        "-daemonize",
    ]);
    command.args(["-pidfile", pidfile.path()]).stdout(output.try_clone().unwrap()).stderr(output);
    let mut starter = Process::start(&mut command);
    let mut watch = Watch::new();
    let start = std::time::Instant::now();
    let mut seen = None;
    while seen.is_none() {
        assert!(
            start.elapsed() < PATIENCE,
            "{}",
            crate::harness::read_all(std::fs::File::open(&log.0).unwrap())
        );
        let vms: Vec<_> = watch.sweep().into_iter().filter(|vm| vm.name == "memdex-daemonized").collect();
        assert!(vms.len() <= 1, "{vms:#?}");
        seen = vms.first().map(|vm| vm.process.pid);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let daemon = seen.unwrap();
    assert_ne!(daemon, starter.pid());
    starter.kill();
    assert_eq!(watch.look(daemon).unwrap().regions.len(), 1);
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    watch.until_gone(daemon, NOTICED);
}

#[test]
fn a_machine_without_memory_is_no_vm() {
    let qemu = Qemu::start(&["-machine", "none"]);
    let mut watch = Watch::new();
    let start = std::time::Instant::now();
    while start.elapsed() < NOTICED * 2 {
        assert_eq!(watch.look(qemu.pid()), None);
        std::thread::sleep(crate::harness::TICK);
    }
}
