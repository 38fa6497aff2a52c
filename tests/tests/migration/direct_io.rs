//! A guest whose disk writes its memory by direct I/O moves: what may have arrived unseen is read again while the guest stands still, and most of
//! it before, after a moment at which the disk had nothing under way.

use std::time::Duration;

use memdex_tests::{
    Scratch,
    image::{self, Check, Workload},
    qemu::{Backend, Checks},
};

use crate::hosts::{Hosts, migrate, start, tcp, tiny};

const CHECK: Check = Check { mib: 32, rate: 200, hot: 8 };
const WORKLOAD: Workload = Workload { rate: 20, files: 32, file_kib: 64, seed: 6 };

#[test]
fn guest_with_cache_none_moves_while_it_reads_its_disk() {
    let scratch = Scratch::new("dio");
    let hosts = Hosts::start(&scratch);
    let disk = scratch.path("disk.img");
    let mut content = vec![0; 32 << 20];
    blake3::Hasher::new().update(b"memdex: a disk that moves").finalize_xof().fill(&mut content);
    std::fs::write(&disk, content).expect("room for a disk");
    let mut options = tiny(scratch.shm("ram0"), 192, &WORKLOAD, &CHECK, None);
    options.disk = Some(disk);
    options.disk_access = "cache=none,aio=native";

    let name = scratch.name("a");
    let mut guest = start(&scratch, &name, &options, &hosts.a);
    guest.wait_for_serial(image::READY, Duration::from_secs(120));
    guest.wait_for_serial("MEMDEX-DISK read", Duration::from_secs(120));
    let checks = guest.check_all(Checks::default());
    let vm = hosts.a.vm_of(guest.pid()).expect("it runs");
    assert_eq!(vm.tracking, "exact", "{:?}", vm.advisory_reasons);
    assert!(vm.pages.unsettled > 0, "nothing has settled within two minutes: {:?}", vm.pages);

    let there = options.destination(Backend::File(scratch.shm("ram1")));
    let mut waiting = start(&scratch, &scratch.name("b"), &there, &hosts.b);
    let (report, code) =
        migrate(&hosts.a, &name, &tcp(&hosts.b), &scratch.name("b"), &["--downtime", "400ms"]);
    eprintln!("{report}");
    assert_eq!((code, &report["outcome"]), (Some(0), &"completed".into()), "{report}");
    let log = hosts.a.log();
    let line = log.lines().find(|line| line.contains("unsettled pages read again"));
    let line = line.unwrap_or_else(|| panic!("the log says what was read again:\n{log}"));
    eprintln!("{line}");
    let again = line.split(" unsettled pages").next().and_then(|text| text.rsplit('(').next());
    let again: u64 = again.and_then(|number| number.parse().ok()).expect("a number of pages");
    assert!(again < vm.pages.unsettled, "{again} pages of {} were read again", vm.pages.unsettled);

    // Its disk goes on at the destination.
    let checks = waiting.check_all(checks);
    waiting.wait_for_serial("MEMDEX-DISK read", Duration::from_secs(120));
    waiting.check_ok(checks);
    assert_eq!((guest.bad_check(), waiting.bad_check()), (None, None));
    let _ = guest.wait_for_exit(Duration::from_secs(5));
}
