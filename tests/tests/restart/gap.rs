//! What happens between two daemons.

use std::process::Child;

use super::*;

/// A normal end is no different, and a reader's `since` goes on.
#[test]
fn an_orderly_restart_forgets_nothing_either() {
    let scratch = Scratch::new("orderly");
    let mut guest = Tiny::start(&scratch, &scratch.name("o"));
    guest.write(1, 500, 7);
    let mut daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    let since = vm.generation;
    let took = daemon.stop();
    guest.write(100, 3, 99);
    drop(daemon);
    daemon = Daemon::start(&scratch);
    let after = settled(&daemon, &guest);
    eprintln!("stopped in {took:?}");
    assert!(after.generation > since, "the generation went back from {since} to {}", after.generation);
    assert!(hashed(&daemon, &after) <= 8, "three pages were written: {}", hashed(&daemon, &after));
    let changed = daemon.succeed(&["pages", &vm.id, "--since", &since.to_string(), "-o", "jsonl"]);
    let changed = String::from_utf8_lossy(&changed).lines().count();
    assert!((3..=8).contains(&changed), "{changed} pages are said to have changed");
    judge(&daemon, &after, "after an orderly restart");
}

/// A VM that was found a moment before the daemon was killed: also what it did first is written down, and no page waits for minutes to be settled.
#[test]
fn a_vm_that_was_just_found_is_not_doubted() {
    let scratch = Scratch::new("just");
    let mut daemon = Daemon::start(&scratch);
    for round in 0..8_u64 {
        let large = tiny::Options { mib: 256, ..tiny::Options::default() };
        let mut guest = Tiny::start_with(&scratch, &scratch.name(&format!("j{round}")), &large);
        guest.write(1, 60_000, 7);
        let maps = PathBuf::from(format!("{}.maps", daemon.socket().display()));
        let pid = format!("vm-{}-", guest.pid());
        let found = || {
            let mut files = fs::read_dir(&maps).ok()?.flatten();
            files.find(|file| file.file_name().to_string_lossy().starts_with(&pid))
        };
        wait::until("the VM's map", APPEAR, found);
        // Some of these moments are when something has been published, and before the tracker's first tick.
        std::thread::sleep(Duration::from_millis(5 + round * 8));
        daemon.kill();
        drop(daemon);
        daemon = Daemon::start(&scratch);
        let vm = settled(&daemon, &guest);
        assert_eq!((vm.pages.unsettled, vm.pages.stale), (0, 0), "round {round}: {vm:?}");
        judge(&daemon, &vm, "after the VM had just been found");
    }
}

/// What was published right before an orderly end is known to the next daemon however late it comes: a last look has found no direct I/O. With a disk open for
/// it the same pages are unsettled.
#[test]
fn an_orderly_end_leaves_nothing_unproven() {
    let scratch = Scratch::new("late");
    let mut guest = Tiny::start(&scratch, &scratch.name("l"));
    let mut dio = Tiny::start(&scratch, &scratch.name("i"));
    let disk = scratch.path("disk");
    fs::write(&disk, vec![0x5a; 16 * 4096]).expect("the disk can be made");
    let mut daemon = Daemon::start(&scratch);
    settled(&daemon, &guest);
    settled(&daemon, &dio);
    guest.write(1, 2000, 7);
    dio.write(1, 2000, 7);
    for vm in [settled(&daemon, &guest), settled(&daemon, &dio)] {
        daemon.sync(&vm.id);
    }
    dio.run(&format!("disk open {}", disk.display()));
    daemon.stop();
    // Longer than two looks of one daemon lie apart.
    std::thread::sleep(Duration::from_secs(8));
    drop(daemon);
    daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    assert_eq!((vm.pages.unsettled, vm.pages.stale, vm.picked_up), (0, 0, vm.pages.total), "{vm:?}");
    judge(&daemon, &vm, "late after an orderly end");
    let vm = settled(&daemon, &dio);
    assert!(vm.pages.unsettled >= 2000, "{vm:?}");
    judge(&daemon, &vm, "late after an orderly end, with a disk open for direct I/O");
}

/// What the page table does not show: a hole that was read since it was made is a page of zeros that is still protected.
#[test]
fn what_is_thrown_away_while_nobody_looks_is_noticed() {
    let scratch = Scratch::new("holes");
    let mut guest = Tiny::start(&scratch, &scratch.name("h"));
    guest.write(1, 2000, 7);
    let mut daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    daemon.kill();
    guest.run("punch 0 100 50");
    guest.run("madvise 0 300 20 remove");
    // Some of them are read: by whom makes no difference.
    let ram = mappings(vm.pid)
        .into_iter()
        .find(|mapping| mapping.pages() == vm.pages.total)
        .expect("the RAM is mapped");
    let memory = File::open(format!("/proc/{}/mem", vm.pid)).expect("root may read it");
    for page in (100..120).chain(300..310) {
        let mut byte = [1];
        memory.read_exact_at(&mut byte, ram.start + page * 4096).expect("it is mapped");
        assert_eq!(byte, [0]);
    }
    drop(daemon);
    daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    assert_eq!(vm.picked_up, vm.pages.total - 70, "{vm:?}");
    assert!(hashed(&daemon, &vm) <= 70);
    judge(&daemon, &vm, "after pages were thrown away");
}

/// A disk that is opened, used and closed again while nobody looks: a page that was armed is seen as written when it is pinned.
#[test]
fn what_a_disk_writes_while_nobody_looks_is_noticed() {
    let scratch = Scratch::new("disk");
    let mut guest = Tiny::start(&scratch, &scratch.name("d"));
    guest.write(1, 1000, 7);
    let disk = scratch.path("disk");
    fs::write(&disk, vec![0x5a; 16 * 4096]).expect("the disk can be made");
    let mut daemon = Daemon::start(&scratch);
    settled(&daemon, &guest);
    daemon.kill();
    guest.run(&format!("disk open {}", disk.display()));
    guest.run("disk pread 40 5");
    guest.run("disk aio 60 5");
    guest.run("disk wait");
    guest.run("disk close");
    drop(daemon);
    daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    assert!((1..=16).contains(&hashed(&daemon, &vm)), "{} pages were hashed", hashed(&daemon, &vm));
    assert!(vm.picked_up >= vm.pages.total - 16, "{vm:?}");
    judge(&daemon, &vm, "after direct I/O");
}

/// Somebody who maps the RAM while nobody looks, and is still there when a daemon comes, is found before anything is believed.
#[test]
fn what_somebody_writes_who_came_while_nobody_looked_is_not_believed() {
    let scratch = Scratch::new("mapper");
    let mut guest = Tiny::start(&scratch, &scratch.name("m"));
    guest.write(1, 2000, 7);
    let mut daemon = Daemon::start(&scratch);
    settled(&daemon, &guest);
    daemon.kill();
    // More processes than one sweep looks at by itself.
    let sleep = |_| scratch.command("sleep").arg("60").spawn().expect("sleep starts");
    let mut crowd: Vec<Child> = (0..100).map(sleep).collect();
    let mut writer = Tiny::writer_to(&scratch, &guest);
    writer.run("map");
    writer.run("poke 100 50 99");
    drop(daemon);
    daemon = Daemon::start(&scratch);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    let vm = daemon.vm_of(guest.pid()).expect("it runs");
    assert_eq!((vm.picked_up, vm.tracking.as_str()), (0, "advisory"), "{vm:?}");
    oracle::compare(&daemon, &vm).expect_exact("while another process maps the RAM");
    for sleeper in &mut crowd {
        sleeper.kill().and_then(|()| sleeper.wait()).expect("ours");
    }
}

#[test]
fn memory_that_is_mapped_anew_or_plugged_in_while_nobody_looks_is_read() {
    let scratch = Scratch::new("gap");
    let ram = tiny::Options { ram: tiny::Ram::Anonymous, ..tiny::Options::default() };
    let mut mapped = Tiny::start_with(&scratch, &scratch.name("r"), &ram);
    let mut plugged = Tiny::start(&scratch, &scratch.name("p"));
    mapped.write(1, 2000, 7);
    plugged.write(1, 2000, 7);
    let mut daemon = Daemon::start(&scratch);
    settled(&daemon, &mapped);
    settled(&daemon, &plugged);
    daemon.kill();
    mapped.run("remap 0");
    mapped.run("poke 1 10 50");
    plugged.run("slot add 3 8192 1024");
    plugged.write(8192, 5, 60);
    drop(daemon);
    daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &mapped);
    assert_eq!(vm.picked_up, 0, "{vm:?}");
    judge(&daemon, &vm, "after the region was mapped anew");
    let vm = settled(&daemon, &plugged);
    assert_eq!((vm.picked_up, vm.pages.total), (4096, 5120), "{vm:?}");
    assert!(hashed(&daemon, &vm) <= 1024);
    judge(&daemon, &vm, "after memory was plugged in");
    daemon.kill();
    plugged.run("slot del 3");
    drop(daemon);
    daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &plugged);
    assert_eq!((vm.picked_up, vm.pages.total, hashed(&daemon, &vm)), (4096, 4096, 0), "{vm:?}");
    judge(&daemon, &vm, "after it was taken out");
}

/// Another daemon, with a folder of its own, arms the pages anew: then what the first one left is worth nothing, and nobody must think so.
#[test]
fn a_daemon_that_came_in_between_is_not_overlooked() {
    let scratch = Scratch::new("between");
    let mut guest = Tiny::start(&scratch, &scratch.name("b"));
    guest.write(1, 2000, 7);
    for round in 0..2_u32 {
        for name in ["one", "other"] {
            let mut daemon = Daemon::start_with(&scratch, name, &Options::default());
            let vm = settled(&daemon, &guest);
            assert_eq!(vm.picked_up, 0, "{name}, round {round}: {vm:?}");
            judge(&daemon, &vm, name);
            daemon.kill();
            // Seen by whoever comes next, who arms these pages again: after that the page table knows nothing of it.
            guest.write(50, 20, 1000 * (round + 1));
        }
    }
    let fds = userfaultfds(guest.pid());
    assert_eq!(fds, 1, "{fds} userfaultfds are in the VMM");
}

/// Another version's map, garbage, and a map of before: each is read anew, and said so.
#[test]
fn a_map_that_cannot_be_used_is_made_anew() {
    let scratch = Scratch::new("format");
    let mut guest = Tiny::start(&scratch, &scratch.name("f"));
    guest.write(1, 1000, 7);
    let mut daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    let file = map_file(&daemon, &vm);
    let before = fs::read(&file).map(|bytes| bytes.len()).expect("the map is where it belongs");
    assert!(before > 1 << 16);
    type Spoil = fn(&File);
    let spoil: [(&str, Spoil); 4] = [
        ("format 77", |file| file.write_all_at(&77_u64.to_le_bytes(), 8).expect("it is ours")),
        ("no map", |file| file.write_all_at(&[0x5a; 5000], 0).expect("it is ours")),
        ("cut off", |file| file.set_len(3).expect("it is ours")),
        // All but the header: the table names slots that are not there.
        ("table is damaged", |file| file.write_all_at(&[0xff; 4096], 1 << 16).expect("it is ours")),
    ];
    for (words, spoil) in spoil {
        daemon.kill();
        guest.write(10, 10, 77);
        spoil(&OpenOptions::new().write(true).open(&file).expect("root may"));
        drop(daemon);
        daemon = Daemon::start(&scratch);
        let vm = settled(&daemon, &guest);
        assert_eq!(vm.picked_up, 0, "{words}: {vm:?}");
        assert!(daemon.log().contains(words), "the log does not say {words:?}");
        judge(&daemon, &vm, words);
        // And the one after that goes on as ever.
        daemon.kill();
        drop(daemon);
        daemon = Daemon::start(&scratch);
        let vm = settled(&daemon, &guest);
        assert_eq!((vm.picked_up, hashed(&daemon, &vm)), (vm.pages.total, 0), "after {words}: {vm:?}");
    }
    assert_eq!(userfaultfds(guest.pid()), 1);
    guest.kill();
    wait::until("the map of a VM that has ended to go", APPEAR, || (!file.exists()).then_some(()));
}
