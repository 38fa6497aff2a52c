//! A real `memdexd` and a KVM guest on this kernel: what is attached, how it is tracked, and whether the map is right.

use std::time::Duration;

use memdex_tests::{Daemon, Scratch, Tiny, contract::Vm, oracle, tiny, wait};
use serde_json::Value;

use crate::{abilities::Abilities, reporter::Reporter};

pub(crate) const APPEAR: Duration = Duration::from_secs(5);
/// Time for the last writes to be seen without a sync.
const SEEN: Duration = Duration::from_millis(100);
const ROUNDS: u32 = 4;

/// A host with one guest; the scratch space is dropped last.
struct Host {
    guest: Tiny,
    daemon: Daemon,
    vm: Vm,
    _scratch: Scratch,
}

pub(crate) fn check(reporter: &mut Reporter, abilities: &Abilities) {
    let host = reporter.prepare("memdexd finds a KVM guest", || {
        let host = Host::start();
        let detail =
            format!("{} of {} MiB, {}", host.vm.vmm, host.vm.memory_bytes >> 20, host.vm.accelerator);
        Ok((host, detail))
    });
    let Some(mut host) = host else { return };

    for (name, state) in host.witnesses() {
        if name.starts_with("ebpf:") {
            reporter.fact(&name, if state.is_ok() { "attached" } else { "missing" });
        }
    }
    reporter.check("every eBPF hook is attached", || host.hooks());
    reporter.check("tracking is as good as the kernel allows, and says so", || host.tracking(abilities));
    reporter.check("every page of the map is right while the guest writes", || host.rounds(abilities));
    let vm = host.vm();
    reporter.fact("tracking", vm.tracking.as_str());
    if abilities.exact() {
        reporter.check("no guest write was without a mark", || {
            let faults = host.runs("kvm_page_fault")?;
            match (vm.missed_by_ebpf, faults) {
                (0, 1..) => Ok(format!("kvm_page_fault ran {faults} times")),
                (missed, _) => Err(format!("{missed} pages missed, kvm_page_fault ran {faults} times")),
            }
        });
    }
    reporter.check("memdexd stops when it is told to", || {
        let took = host.daemon.stop();
        host.guest.kill();
        Ok(format!("in {} ms", took.as_millis()))
    });
}

impl Host {
    fn start() -> Self {
        let scratch = Scratch::new("kernel");
        let options = tiny::Options { mib: 32, ..tiny::Options::default() };
        let mut guest = Tiny::start_with(&scratch, &scratch.name("k"), &options);
        guest.write(1, 1000, 1);
        let daemon = Daemon::start(&scratch);
        let (vm, _) = daemon.wait_for_vm(guest.pid(), APPEAR);
        daemon.sync(&vm.id);
        Self { guest, daemon, vm, _scratch: scratch }
    }

    fn vm(&self) -> Vm {
        self.daemon.vm_of(self.guest.pid()).unwrap_or_else(|| self.vm.clone())
    }

    /// Each witness by name; if it is not active, why.
    fn witnesses(&self) -> Vec<(String, Result<(), String>)> {
        let text = |witness: &Value, key: &str| witness[key].as_str().unwrap_or_default().to_owned();
        let each = self.vm().witnesses.into_iter().map(|witness| {
            let active = text(&witness, "status") == "active";
            let state = if active { Ok(()) } else { Err(text(&witness, "reason")) };
            (text(&witness, "name"), state)
        });
        each.collect()
    }

    fn hooks(&self) -> Result<String, String> {
        let hooks = self.witnesses().into_iter().filter(|(name, _)| name.starts_with("ebpf:"));
        let (good, bad): (Vec<_>, Vec<_>) = hooks.partition(|(_, state)| state.is_ok());
        let reasons = bad.into_iter().filter_map(|(name, state)| Some(format!("{name}: {}", state.err()?)));
        let reasons: Vec<String> = reasons.collect();
        match (good.len(), reasons.as_slice()) {
            (0, []) => Err("there is none".to_owned()),
            (count, []) => Ok(format!("{count} of them")),
            (_, reasons) => {
                // The verifier's own words are in there.
                eprintln!("{}", self.daemon.log());
                Err(reasons.join("; "))
            }
        }
    }

    fn tracking(&self, abilities: &Abilities) -> Result<String, String> {
        let vm = self.vm();
        let protect = self.witnesses().into_iter().find(|(name, _)| name == "write-protect");
        let (_, protect) = protect.ok_or("there is no witness write-protect")?;
        let seen = format!("{}, write-protect {protect:?}, {:?}", vm.tracking, vm.advisory_reasons);
        let says_why = |reason: &String| reason.contains("Linux 6.7 or newer is needed");
        let bits = self.witnesses().iter().any(|(name, state)| name == "soft-dirty" && state.is_ok());
        let exact = vm.tracking == "exact" && vm.advisory_reasons.is_empty();
        let right = match (abilities.page_by_page(), &protect) {
            (true, Ok(())) => exact && !bits,
            (false, Err(reason)) if abilities.whole() => exact && bits && says_why(reason),
            (false, Err(reason)) => {
                vm.tracking == "advisory" && says_why(reason) && vm.advisory_reasons.iter().any(says_why)
            }
            _ => false,
        };
        if right { Ok(seen) } else { Err(seen) }
    }

    /// The guest writes, its VMM writes, memory is discarded; after each pause every page is compared with the RAM. Where
    /// tracking is exact the map has to be right by itself, else only what a sync says is promised.
    fn rounds(&mut self, abilities: &Abilities) -> Result<String, String> {
        let mut compared = 0;
        self.guest.run("loop 2000 1 6000");
        for round in 0..ROUNDS {
            std::thread::sleep(Duration::from_millis(300));
            self.guest.run("pause");
            let first = 1 + u64::from(round) * 997;
            self.guest.write(first, 500, round * 1000);
            self.guest.run(&format!("poke {} 7 {round}", first + 50));
            self.guest.run(&format!("fill {} 3", first + 120));
            self.guest.run(&format!("zero {} 20", first + 150));
            self.guest.run(&format!("punch 0 {} 9", first + 60));
            if abilities.exact() {
                wait::pause(SEEN);
                oracle::compare_claims(&self.daemon, &self.vm).expect_exact("without a sync");
            }
            self.daemon.sync(&self.vm.id);
            let report = oracle::compare(&self.daemon, &self.vm);
            report.expect_exact("after a sync");
            compared += report.checked;
            self.guest.run("resume");
        }
        self.guest.run("pause");
        Ok(format!("{compared} pages compared, none differs"))
    }

    fn runs(&self, program: &str) -> Result<u64, String> {
        let answer = self.daemon.get("/metrics");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let name = format!("memdex_ebpf_runs_total{{program=\"{program}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<f64>().ok());
        value.map(|value| value as u64).ok_or_else(|| format!("no metric {name}"))
    }
}
