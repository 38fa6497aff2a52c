//! Protects the judge of migrations: a guest that watches over its own memory says so each second, on every QEMU there
//! is, and cannot be fooled by a single wrong word.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use memdex_tests::{
    PAGE, Qemu, Scratch,
    image::{self, Check, Workload},
    qemu::{Backend, Boot, CHECK_PAGE, Checks, Options},
    qmp::Qmp,
    wait,
};
use serde_json::json;

const CHECK: Check = Check { mib: 32, rate: 20, hot: 4 };
const QUIET: Workload = Workload { rate: 0, files: 4, file_kib: 4, seed: 5 };

#[test]
fn guest_that_checks_itself_boots_on_every_qemu() {
    for program in image::qemu_versions().expect("every QEMU there is") {
        eprintln!("QEMU {}", program.version);
        let scratch = Scratch::new("check");
        let boot = Boot::tiny(&QUIET, Some(&CHECK));
        let mut options = Options::linux(128, Backend::File(scratch.shm("ram")), boot);
        options.qemu = Some(program);
        let mut guest = Qemu::start(&scratch, &scratch.name("c"), &options);
        let took = guest.wait_for_serial(image::READY, Duration::from_secs(120));
        eprintln!("booted in {took:?}");
        assert_eq!(guest.status(), "running");
        let command_line = fs::read_to_string(format!("/proc/{}/cmdline", guest.pid())).expect("it runs");
        let first = command_line.split('\0').skip_while(|word| *word != "-qmp").nth(1).expect("a monitor");
        let socket = guest.memdex_monitor();
        assert!(first.contains(&socket.display().to_string()), "memdex's monitor comes first: {first}");
        let mut monitor = Qmp::connect(socket).expect("a second client is served there");
        assert_eq!(monitor.run("query-status", &json!({}))["status"], "running");
        let first = guest.check_ok(Checks::default());
        let second = guest.check_all(first);
        assert!(second.writes > first.writes && second.pages > first.pages, "{first:?} {second:?}");
        assert_eq!(guest.checks(), Some(second));
    }
}

#[test]
fn one_wrong_word_in_memory_is_found_and_never_forgotten() {
    let scratch = Scratch::new("wrong");
    let boot = Boot::tiny(&QUIET, Some(&CHECK));
    let ram = scratch.shm("ram");
    let options = Options::linux(128, Backend::File(ram.clone()), boot);
    let mut guest = Qemu::start(&scratch, &scratch.name("w"), &options);
    guest.check_ok(Checks::default());
    guest.pause();
    change_a_word(&ram);
    assert_eq!(guest.bad_check(), None);
    guest.resume();
    let (bad, _) = wait::until("the guest's complaint", Duration::from_secs(30), || guest.bad_check());
    eprintln!("{bad}");
    assert!(bad.contains("word 200"), "{bad}");
    let said = |guest: &Qemu| guest.serial().matches("MEMDEX-CHECK BAD").count();
    wait::until("two more complaints", Duration::from_secs(30), || (said(&guest) > 2).then_some(()));
}

/// Changes one word, in one of the pages that hold chance.
fn change_a_word(ram: &Path) {
    let file = File::options().read(true).write(true).open(ram).expect("the RAM file");
    let pages = file.metadata().expect("its size").len() / PAGE;
    let begins = |page: &u64| {
        let mut begin = [0; 8];
        file.read_exact_at(&mut begin, page * PAGE).expect("a page");
        begin == *CHECK_PAGE
    };
    let found: Vec<u64> = (0..pages).filter(begins).collect();
    assert!(found.len() > 32 << 6, "half of 32 MiB are such pages: {}", found.len());
    let at = found[found.len() / 2] * PAGE + 200 * 8;
    let mut word = [0];
    file.read_exact_at(&mut word, at).expect("a byte");
    file.write_all_at(&[word[0] ^ 1], at).expect("the RAM file can be written");
}
