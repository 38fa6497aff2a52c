//! `memdexd --detach`.

use super::*;

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
