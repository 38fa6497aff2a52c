//! Protects the promise that a new daemon picks up where the old one was, however that ended: what was not written meanwhile is not hashed again,
//! what was written or thrown away meanwhile is stale, and nothing is ever shown that is not so. And that `memdexd --detach` leaves a VMM as it was found.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

use memdex_tests::{
    Daemon, Scratch, Tiny,
    address_space::mappings,
    contract::Vm,
    daemon::{Options, binary},
    oracle, tiny, wait,
};

const APPEAR: Duration = Duration::from_secs(5);
/// For each kind of memory: a hundred together.
const KILLS: u32 = 50;

/// A figure of one VM.
fn figure(daemon: &Daemon, name: &str, vm: &Vm) -> u64 {
    let text = String::from_utf8(daemon.get("/metrics").body).expect("text");
    let start = format!("memdex_vm_{name}{{vm=\"{}\"", vm.id);
    let line =
        text.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no {start} in {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number") as u64
}

fn hashed(daemon: &Daemon, vm: &Vm) -> u64 {
    figure(daemon, "pages_read_total", vm)
}

/// Waits until nothing is stale, but for what is unsettled because the daemon came late. The guest has to be paused.
fn settled(daemon: &Daemon, guest: &Tiny) -> Vm {
    // What a machine is too busy for within five seconds (a thread of the VMM makes a call) is tried again after fifteen.
    wait::until("all pages to be known", Duration::from_secs(40), || {
        let vm = daemon.vm_of(guest.pid())?;
        let known = vm.pages.stale == vm.pages.unsettled && vm.tracking == "exact";
        known.then_some(vm)
    })
    .0
}

/// Holds the map against the memory.
fn judge(daemon: &Daemon, vm: &Vm, context: &str) {
    if vm.pages.unsettled == 0 {
        oracle::compare(daemon, vm).expect_exact(context);
    } else {
        oracle::compare_claims(daemon, vm).expect_exact(context);
    }
}

/// The file that the daemon keeps a VM's map in.
fn map_file(daemon: &Daemon, vm: &Vm) -> PathBuf {
    PathBuf::from(format!("{}.maps", daemon.socket().display())).join(&vm.id)
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_hundred_kills_under_load_forget_nothing_and_make_nothing_up_half_of_them_with_a_memfd() {
    kills(tiny::Ram::Memfd);
}

#[test]
fn a_hundred_kills_under_load_forget_nothing_and_make_nothing_up_half_of_them_with_private_memory() {
    kills(tiny::Ram::Anonymous);
}

fn kills(ram: tiny::Ram) {
    const QUIET: u64 = 3000;
    const BUSY: u64 = 500;
    let scratch = Scratch::new("kills");
    let mut guests = [ram].map(|ram| {
        let name = scratch.name(if ram == tiny::Ram::Memfd { "m" } else { "a" });
        let mut guest = Tiny::start_with(&scratch, &name, &tiny::Options { ram, ..tiny::Options::default() });
        guest.write(1, QUIET, 7);
        // Once, so that huge pages are there: the first write to one is a write to all of it.
        guest.write(QUIET + 1, BUSY, 9);
        guest
    });
    // However slow the machine is: that there was no direct I/O is not the question here.
    let options =
        Options { arguments: vec!["--settle-seconds".to_owned(), "0".to_owned()], ..Options::default() };
    let mut daemon = Daemon::start_with(&scratch, "memdexd", &options);
    for guest in &guests {
        let vm = settled(&daemon, guest);
        assert_eq!(vm.picked_up, 0, "there was nobody to pick up from");
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut picked_up, mut again, mut founds) = (0, 0, 0);
    let found = |daemon: &Daemon| daemon.log().matches("found a VM").count();
    for guest in &mut guests {
        guest.run(&format!("loop 3000 {} {BUSY}", QUIET + 1));
    }
    for kill in 1..=KILLS {
        // It dies before it has found anything, while it attaches, while it looks what holds, or at work.
        if kill % 8 != 0 {
            wait::until("the daemon to find the VMs", APPEAR, || (found(&daemon) > founds).then_some(()));
        }
        let most = [3_000, 10_000, 30_000, 150_000][random(&mut state) as usize % 4];
        std::thread::sleep(Duration::from_micros(random(&mut state) % most));
        daemon.kill();
        founds = found(&daemon);
        if kill % 10 != 0 {
            daemon = Daemon::launch(&scratch, "memdexd", &options);
            continue;
        }
        std::thread::sleep(Duration::from_millis(20));
        for guest in &mut guests {
            guest.run("pause");
        }
        daemon = Daemon::start_with(&scratch, "memdexd", &options);
        for guest in &guests {
            let vm = settled(&daemon, guest);
            let read = hashed(&daemon, &vm);
            assert!(
                vm.picked_up >= QUIET,
                "after kill {kill} only {} pages were known: {vm:?}",
                vm.picked_up
            );
            assert!(
                read <= BUSY,
                "after kill {kill} {read} pages were hashed, and {BUSY} may have been written"
            );
            assert_eq!(vm.pages.stale, 0);
            judge(&daemon, &vm, &format!("after kill {kill}"));
            assert_eq!(vm.mismatches, 0);
            daemon.verify(&vm.id);
            picked_up += vm.picked_up;
            again += read;
        }
        // Nobody writes now: this time nothing at all may be hashed.
        daemon.kill();
        daemon = Daemon::start_with(&scratch, "memdexd", &options);
        for guest in &guests {
            let vm = settled(&daemon, guest);
            assert_eq!(
                (vm.picked_up, hashed(&daemon, &vm)),
                (vm.pages.total, 0),
                "after kill {kill}: {vm:?}"
            );
            assert_eq!(vm.pages.stale, 0);
            judge(&daemon, &vm, &format!("after kill {kill}, with nothing written"));
        }
        for guest in &mut guests {
            guest.run("resume");
        }
        founds = 0;
    }
    eprintln!("{picked_up} pages picked up, {again} hashed again");
    for guest in &mut guests {
        assert!(guest.is_running());
    }
}

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

fn userfaultfds(pid: u32) -> usize {
    open_files(pid).values().filter(|target| target.contains("userfaultfd")).count()
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

/// The open files of a process, by number.
fn open_files(pid: u32) -> BTreeMap<String, String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("root may look");
    files
        .flatten()
        .filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            Some((file.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The mappings of a process with their flags, less what moves by itself.
fn flags(pid: u32) -> Vec<String> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("root may look");
    let wanted = |line: &&str| {
        line.starts_with("VmFlags:") || line.split(' ').next().is_some_and(|word| word.contains('-'))
    };
    smaps.lines().filter(wanted).map(str::to_owned).collect()
}

/// Bits of the page table's entries that write protection leaves: the protection itself (57), and a marker or a swapped page (62).
fn protected_pages(pid: u32, start: u64, pages: u64) -> usize {
    let mut pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("root may look");
    pagemap.seek(SeekFrom::Start(start / 4096 * 8)).expect("it can be sought in");
    let mut bytes = vec![0; pages as usize * 8];
    pagemap.read_exact(&mut bytes).expect("it is as long as the address space");
    let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
    entries.filter(|entry| entry >> 57 & 1 == 1 || entry >> 62 & 1 == 1).count()
}

fn detach(scratch: &Scratch, daemon: &Daemon) -> Output {
    let mut command = scratch.command(binary("memdexd"));
    command.args(["--detach", "--listen", &daemon.url()]);
    for glob in scratch.globs(&["*"]) {
        command.args(["--include", &glob]);
    }
    command.output().expect("memdexd starts")
}

#[test]
fn detach_leaves_the_vmm_as_it_was_found() {
    let scratch = Scratch::new("detach");
    let mut guests = [tiny::Ram::Memfd, tiny::Ram::Anonymous].map(|ram| {
        let name = scratch.name(if ram == tiny::Ram::Memfd { "m" } else { "a" });
        let mut guest = Tiny::start_with(&scratch, &name, &tiny::Options { ram, ..tiny::Options::default() });
        guest.write(1, 1000, 7);
        // It has been dozing at its prompt: stacks and heaps have grown as far as they will.
        guest.run("layout");
        guest
    });
    let before: Vec<_> = guests.iter().map(|guest| (open_files(guest.pid()), flags(guest.pid()))).collect();
    for kill in [true, false] {
        let mut daemon = Daemon::start(&scratch);
        let vms: Vec<_> = guests.iter().map(|guest| settled(&daemon, guest)).collect();
        let rams: Vec<_> = vms
            .iter()
            .map(|vm| {
                mappings(vm.pid)
                    .into_iter()
                    .find(|mapping| mapping.pages() == vm.pages.total)
                    .expect("its RAM")
                    .start
            })
            .collect();
        // As long as it runs, nothing is taken from it.
        let refused = detach(&scratch, &daemon);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("stop that first"), "{refused:?}");
        if kill {
            daemon.kill();
        } else {
            daemon.stop();
        }
        for (vm, ram) in vms.iter().zip(&rams) {
            assert!(protected_pages(vm.pid, *ram, vm.pages.total) >= 1000, "nothing was left to detach");
            assert!(map_file(&daemon, vm).exists());
        }
        let done = detach(&scratch, &daemon);
        assert!(done.status.success(), "{done:?}");
        let words = String::from_utf8_lossy(&done.stdout).into_owned();
        assert_eq!(words.matches(": detached").count(), 2, "{words}");
        for (((vm, ram), guest), (files, flags_before)) in vms.iter().zip(&rams).zip(&mut guests).zip(&before)
        {
            assert_eq!(&open_files(vm.pid), files);
            assert_eq!(&flags(vm.pid), flags_before);
            assert_eq!(protected_pages(vm.pid, *ram, vm.pages.total), 0, "pages stayed protected");
            assert!(guest.is_running());
            guest.write(1, 1000, 7);
        }
        assert!(!map_file(&daemon, &vms[0]).parent().expect("a folder").exists(), "maps are left over");
        let nothing = detach(&scratch, &daemon);
        assert!(
            nothing.status.success() && String::from_utf8_lossy(&nothing.stdout).contains("nothing"),
            "{nothing:?}"
        );
    }
}

/// How long it takes until a restarted daemon knows the VM again, beside the first time. No bound: the machine is a busy one.
#[test]
fn a_large_vm_is_known_again_without_hashing() {
    let scratch = Scratch::new("large");
    let options = tiny::Options { mib: 256, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("l"), &options);
    guest.run("fill 0 60000");
    let mut daemon = Daemon::start(&scratch);
    let first = settled(&daemon, &guest);
    assert!(hashed(&daemon, &first) >= 60_000);
    daemon.kill();
    drop(daemon);
    let begun = Instant::now();
    daemon = Daemon::start(&scratch);
    let vm = settled(&daemon, &guest);
    eprintln!("known again {:?} after the start of the daemon", begun.elapsed());
    assert_eq!((vm.picked_up, hashed(&daemon, &vm)), (vm.pages.total, 0), "{vm:?}");
    // The index from content to place is there again too.
    assert_eq!(vm.pages.current, first.pages.current);
    daemon.verify(&vm.id);
}
