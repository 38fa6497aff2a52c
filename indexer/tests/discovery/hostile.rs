//! Programs that call themselves QEMU and have a command line made to hurt.

use std::{
    ffi::OsString,
    os::unix::{ffi::OsStringExt, process::CommandExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use indexer::vm::{Discovery, NameFilter};

use crate::harness::{Process, Qemu, TICK, Watch};

/// A program that does nothing until it is killed, under QEMU's name and with words of our choice.
fn pretend(words: &[&[u8]]) -> Process {
    let words = words.iter().map(|word| OsString::from_vec(word.to_vec()));
    let mut command = Command::new("sh");
    // The shell waits for its input, which never comes, and keeps the words for itself.
    command.arg0("qemu-system-x86_64").args(["-c", "read wait"]).args(words).stdin(Stdio::piped());
    Process::start(&mut command)
}

#[test]
fn hostile_command_lines_give_harmless_names() {
    let megabytes: Vec<Vec<u8>> = (0..14).map(|_| b"-object\xff,,=".repeat(10_000)).collect();
    let mut long: Vec<&[u8]> = vec![b"-name", b"../../../etc/cron.d/x"];
    long.extend(megabytes.iter().map(Vec::as_slice));
    let lines: Vec<Vec<&[u8]>> = vec![
        vec![b"-name", b"\xff\xfe\x1b[2J\nweb"],
        vec![b"-name", b"guest=../../x,,y,debug-threads=on", b"-m", b"-1"],
        vec![b"-object", b"{\"qom-type\":\"memory-backend-file\",\"mem-path\":", b"-uuid", b"\xff"],
        vec![b"-object", b"memory-backend-file,mem-path=/proc/self/mem,size=99999999999999999999E,share=on"],
        vec![b"-object", b"memory-backend-ram,size=0", b"-m", b"0"],
        vec![b"-m", b"18446744073709551615", b"-name"],
        long,
    ];
    let processes: Vec<Process> = lines.iter().map(|words| pretend(words)).collect();
    let real = Qemu::start(&["-m", "32", "-name", "real"]);
    let mut watch = Watch::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let vms = watch.sweep();
        for vm in &vms {
            let harmless = |text: &str| !text.contains(|letter: char| letter == '/' || letter.is_control());
            assert!(harmless(&vm.name) && !vm.name.starts_with('.'), "{:?}", vm.name);
            assert!(vm.name.chars().count() <= 128 && !vm.name.is_empty());
        }
        std::thread::sleep(TICK);
    }
    let vms = watch.sweep();
    assert!(vms.iter().any(|vm| vm.process.pid == real.pid() && vm.regions.len() == 1));
    for process in &processes {
        let vm = vms.iter().find(|vm| vm.process.pid == process.pid());
        let vm = vm.unwrap_or_else(|| panic!("{} calls itself QEMU and is shown", process.pid()));
        assert!(vm.regions.is_empty() && vm.doubts.len() == 1, "{vm:#?}");
    }
    // What is remembered makes the next look cheap, even of megabytes.
    let start = Instant::now();
    watch.sweep();
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
}

#[test]
fn two_filters_share_out_the_vms_of_a_machine() {
    let first = Qemu::start(&["-m", "16", "-name", "memdex-left-1"]);
    let second = Qemu::start(&["-m", "16", "-name", "memdex-right-1"]);
    let mut left = Discovery::new(NameFilter::new(&["memdex-left-*"], &[]).unwrap());
    let mut right = Discovery::new(NameFilter::new(&["memdex-*"], &["*-left-*"]).unwrap());
    let start = Instant::now();
    loop {
        let pids = |discovery: &mut Discovery| {
            let own = |vm: &u32| [first.pid(), second.pid()].contains(vm);
            discovery.sweep(None).iter().map(|vm| vm.process.pid).filter(own).collect::<Vec<_>>()
        };
        let (left, right) = (pids(&mut left), pids(&mut right));
        assert!(!left.contains(&second.pid()) && !right.contains(&first.pid()));
        if left == [first.pid()] && right == [second.pid()] {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{left:?} {right:?}");
        std::thread::sleep(TICK);
    }
}
