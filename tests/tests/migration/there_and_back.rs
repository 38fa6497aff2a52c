//! A guest moves to another host and back, again and again, and never notices.

use std::time::Duration;

use memdex_tests::{
    Scratch,
    image::{self, Check, Workload},
    qemu::{Backend, Checks},
};

use crate::hosts::{Hosts, migrate, start, tcp, tiny};

const CHECK: Check = Check { mib: 48, rate: 400, hot: 8 };
const WORKLOAD: Workload = Workload { rate: 20, files: 32, file_kib: 64, seed: 5 };

fn there_and_back(program: image::QemuProgram, times: usize) {
    eprintln!("QEMU {}", program.version);
    let scratch = Scratch::new("back");
    let hosts = Hosts::start(&scratch);
    let ends = [(&hosts.a, "a"), (&hosts.b, "b")];
    let options = tiny(scratch.shm("ram0"), 192, &WORKLOAD, &CHECK, Some(program));
    let mut name = scratch.name("a");
    let mut guest = start(&scratch, &name, &options, &hosts.a);
    guest.wait_for_serial(image::READY, Duration::from_secs(120));
    let mut checks = guest.check_all(Checks::default());
    for move_number in 0..2 * times {
        let (from, _) = ends[move_number % 2];
        let (to, letter) = ends[(move_number + 1) % 2];
        let there = options.destination(Backend::File(scratch.shm(&format!("ram{}", move_number + 1))));
        let dest_name = format!("{}-{move_number}", scratch.name(letter));
        let mut waiting = start(&scratch, &dest_name, &there, to);
        let (report, code) = migrate(from, &name, &tcp(to), &dest_name, &[]);
        eprintln!("{report}");
        assert_eq!(code, Some(0), "{report}");
        assert_eq!(report["outcome"], "completed");
        assert_eq!(waiting.status(), "running");
        let _ = guest.wait_for_exit(Duration::from_secs(5));
        let after = waiting.check_ok(checks);
        assert!(after.writes > checks.writes, "{checks:?} {after:?}");
        checks = after;
        (guest, name) = (waiting, dest_name);
    }
    guest.check_all(checks);
    for host in [&hosts.a, &hosts.b] {
        let log = host.log();
        assert!(!log.contains("panicked") && !log.contains(" ERROR "), "{log}");
    }
}

#[test]
fn what_a_ram_file_held_before_does_not_show_through() {
    let scratch = Scratch::new("old");
    let hosts = Hosts::start(&scratch);
    let options = tiny(scratch.shm("ram0"), 192, &WORKLOAD, &CHECK, None);
    let name = scratch.name("a");
    let mut guest = start(&scratch, &name, &options, &hosts.a);
    guest.wait_for_serial(image::READY, Duration::from_secs(120));
    let checks = guest.check_all(Checks::default());
    // All of the file is full of something that the guest has nowhere.
    let file = scratch.shm("ram1");
    let old: Vec<u8> = (0..192u32 << 18).flat_map(|word| (word | 1 << 31).to_le_bytes()).collect();
    std::fs::write(&file, old).expect("room in /dev/shm");
    let there = options.destination(Backend::File(file.clone()));
    let mut waiting = start(&scratch, &scratch.name("b"), &there, &hosts.b);
    let (report, code) = migrate(&hosts.a, &name, &tcp(&hosts.b), &scratch.name("b"), &[]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(waiting.status(), "running");
    waiting.check_all(checks);
    let taken = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file).expect("it is there")) * 512;
    assert!(taken < 160 << 20, "{taken} bytes: where the guest has nothing there is nothing");
}

#[test]
fn pages_are_compressed_or_not_as_was_asked_for() {
    let scratch = Scratch::new("packed");
    let hosts = Hosts::start(&scratch);
    let options = tiny(scratch.shm("ram0"), 192, &WORKLOAD, &CHECK, None);
    let mut name = scratch.name("a");
    let mut guest = start(&scratch, &name, &options, &hosts.a);
    guest.wait_for_serial(image::READY, Duration::from_secs(120));
    let mut checks = guest.check_all(Checks::default());
    for (from, to, letter, how) in [
        (&hosts.a, &hosts.b, "b", "zstd"),
        (&hosts.b, &hosts.a, "a", "none"),
        (&hosts.a, &hosts.b, "b", "auto"),
    ] {
        let dest = format!("{}-{how}", scratch.name(letter));
        let there = options.destination(Backend::File(scratch.shm(&format!("ram-{how}"))));
        let mut waiting = start(&scratch, &dest, &there, to);
        let (report, code) = migrate(from, &name, &tcp(to), &dest, &["--compression", how]);
        assert_eq!(code, Some(0), "{report}");
        let bytes = |which: &str| report["bytes"][which].as_u64().expect("a number of bytes");
        let (sent, wire) = (bytes("sent"), bytes("wire"));
        assert!(sent > 1 << 20, "there was something to send: {report}");
        match how {
            "zstd" => assert!(wire < sent * 2 / 3, "{sent} bytes of memory as {wire}"),
            // Pages that were written meanwhile count as sent, and are withdrawn in the last moment.
            "none" => assert!(wire > sent * 4 / 5, "{sent} bytes of memory as {wire}"),
            _ => {}
        }
        checks = waiting.check_all(checks);
        (guest, name) = (waiting, dest);
    }
    assert_eq!(guest.status(), "running");
}

#[test]
fn guest_moves_there_and_back_ten_times_under_load() {
    for program in image::qemu_versions().expect("every QEMU there is") {
        there_and_back(program, 10);
    }
}
