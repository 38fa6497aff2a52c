//! Protects what is promised where an eBPF hook cannot be attached: it is named with the reason, a VM that is watched worse for it says so beforehand, and a sync is right
//! all the same.
//!
//! A kernel without the tracepoint is made by showing the daemon an empty folder in the place of its description.

use std::{path::PathBuf, time::Duration};

use memdex_tests::{
    Daemon, Scratch, Tiny,
    contract::{State, Vm},
    daemon, oracle, tiny, wait,
};

const APPEAR: Duration = Duration::from_secs(5);
/// A write that only scans find is found within this time: they come every 200 ms.
const SCANNED: Duration = Duration::from_secs(3);
/// So long after it was read a page is looked at only where a hook says so, or everything is.
const NO_LONGER_NEW: Duration = Duration::from_secs(4);

struct Host {
    guest: Tiny,
    daemon: Daemon,
    vm: Vm,
    scratch: Scratch,
}

/// A guest whose memory is all known, and a daemon that lacks these tracepoints.
fn host(tracepoints: &[&str]) -> Host {
    let scratch = Scratch::new("hooks");
    let options = tiny::Options { ram: tiny::Ram::Memfd, ..tiny::Options::default() };
    let mut guest = Tiny::start_with(&scratch, &scratch.name("g"), &options);
    guest.write(1, 1000, 1);
    // tracefs is mounted by the first daemon that needs it.
    drop(Daemon::start(&scratch));
    let places = ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"];
    let events = places.map(PathBuf::from).into_iter().find(|place| place.is_dir()).expect("tracefs");
    let hidden = tracepoints.iter().map(|tracepoint| events.join(tracepoint)).collect();
    let options = daemon::Options { hidden, ..daemon::Options::default() };
    let daemon = Daemon::start_with(&scratch, "without", &options);
    let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
    daemon.sync(&vm.id);
    oracle::compare(&daemon, &vm).expect_exact("before");
    wait::pause(NO_LONGER_NEW);
    let vm = daemon.vm_of(guest.pid()).expect("it is there");
    Host { guest, daemon, vm, scratch }
}

impl Host {
    /// Only these hooks are missing, and the reason names what there is not; in the metrics and for each region too.
    fn expect_missing(&self, hooks: &[&str], word: &str) {
        for witness in &self.vm.witnesses {
            let name = witness["name"].as_str().expect("a name");
            if hooks.contains(&name) {
                let reason = witness["reason"].as_str().unwrap_or_default();
                assert!(witness["status"] == "unavailable" && reason.contains(word), "{witness}");
            } else {
                assert_eq!(witness["status"], "active", "{witness}");
            }
        }
        for region in &self.vm.coverage {
            assert_eq!(region.missing, hooks, "{region:?}");
        }
        let metrics = String::from_utf8(self.daemon.get("/metrics").body).expect("text");
        for hook in hooks {
            let line = metrics.lines().find(|line| {
                line.starts_with("memdex_hook_attached{") && line.contains(&format!("\"{hook}\""))
            });
            assert!(line.is_some_and(|line| line.ends_with(" 0")), "{hook}: {line:?}");
        }
    }

    /// Each of these words is in one of the reasons, and there are no others; each region says so too.
    fn expect_advisory(&self, words: &[&str]) {
        let vm = &self.vm;
        assert!(vm.tracking == "advisory" && vm.advisory_reasons.len() == words.len(), "{vm:?}");
        for words in words {
            assert!(vm.advisory_reasons.iter().any(|reason| reason.contains(words)), "{words}: {vm:?}");
            for region in &vm.coverage {
                assert!(region.reason.as_deref().is_some_and(|reason| reason.contains(words)), "{region:?}");
            }
        }
    }

    /// Soon the map claims nothing wrong, without a sync; and all is known after one.
    fn expect_found(&self, what: &str) {
        wait::until(what, SCANNED, || {
            (oracle::compare_claims(&self.daemon, &self.vm).differing == 0).then_some(())
        });
        self.expect_right_after_a_sync(what);
    }

    fn expect_right_after_a_sync(&self, what: &str) {
        self.daemon.sync(&self.vm.id);
        oracle::compare(&self.daemon, &self.vm).expect_exact(what);
    }
}

#[test]
fn page_faults() {
    for (tracepoint, hook) in [
        ("exceptions/page_fault_user", "ebpf:page_fault_user"),
        ("exceptions/page_fault_kernel", "ebpf:page_fault_kernel"),
        ("kvm/kvm_page_fault", "ebpf:kvm_page_fault"),
    ] {
        let mut host = host(&[tracepoint]);
        host.expect_missing(&[hook], tracepoint.rsplit('/').next().expect("a name"));
        // Scans find what is written: nothing is worse but how soon.
        let vm = &host.vm;
        assert_eq!((vm.tracking.as_str(), vm.advisory_reasons.len()), ("exact", 0), "{vm:?}");
        host.guest.run("poke 2000 50 7");
        host.expect_found("what the VMM wrote");
        host.guest.write(3000, 50, 3);
        host.expect_found("what the guest wrote");
    }
}

#[test]
fn discards() {
    let mut host = host(&["syscalls/sys_enter_madvise"]);
    host.expect_missing(&["ebpf:discard"], "sys_enter_madvise");
    host.expect_advisory(&["the eBPF hooks on discards are not attached"]);
    host.guest.write(3000, 50, 3);
    host.expect_found("what the guest wrote");
    host.guest.run("punch 0 100 50");
    host.expect_right_after_a_sync("discarded");
    let pages = host.daemon.pages(&host.vm.id);
    assert!(pages[100..150].iter().all(|page| page.state == State::Absent), "{:?}", &pages[100..102]);
}

#[test]
fn memory_in_the_place_of_other() {
    let mut host = host(&["syscalls/sys_enter_munmap"]);
    host.expect_missing(&["ebpf:remap"], "sys_enter_munmap");
    host.expect_advisory(&["the eBPF hooks on what remaps are not attached"]);
    host.guest.run("poke 2000 50 7");
    host.expect_found("what the VMM wrote");
}

#[test]
fn mappings_of_other_processes() {
    // What is known of this call is needed by both.
    let mut host = host(&["syscalls/sys_enter_mmap"]);
    host.expect_missing(&["ebpf:remap", "ebpf:mmap"], "sys_enter_mmap");
    host.expect_advisory(&[
        "the eBPF hooks on what remaps are not attached",
        "the eBPF hook on mmap is not attached",
    ]);
    // Until discovery has had its turn a write of somebody else's can go unseen, and that is said.
    assert!(host.vm.staleness_ms >= 10_000, "{:?}", host.vm);
    let mut other = Tiny::writer_to(&host.scratch, &host.guest);
    other.run("map");
    other.run("poke 500 10 7");
    wait::until("the other process to be found", Duration::from_secs(12), || {
        let vm = host.daemon.vm_of(host.guest.pid())?;
        vm.advisory_reasons.iter().any(|reason| reason.contains("maps this VM's RAM writable")).then_some(())
    });
    other.run("poke 600 10 7");
    host.expect_right_after_a_sync("what another process wrote");
    host.guest.write(3000, 50, 3);
    host.expect_right_after_a_sync("what the guest wrote");
}
