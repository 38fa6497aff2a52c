//! Protects the number memdex is for: what another host lacks of a VM, page by page, counted by an independent judge.

use std::{collections::HashSet, time::Duration};

use memdex_tests::{
    Daemon, PAGE, Scratch, Tiny,
    contract::{DiffCounts, Vm},
    daemon, oracle,
};

struct TwoHosts {
    here: Daemon,
    there: Daemon,
    guests: [Tiny; 2],
    vms: [Vm; 2],
}

/// Two daemons, each with one of two guests; the token is theirs both.
fn two_hosts(scratch: &Scratch) -> TwoHosts {
    let mut guests = ["a", "b"].map(|name| Tiny::start(scratch, &scratch.name(name)));
    guests[0].write(16, 1000, 50_000);
    guests[1].write(900, 700, 50_400);
    let host = |name: &str, vm: &str| {
        let options = daemon::Options {
            include: scratch.globs(&[vm]),
            tcp: true,
            token_file: Some(scratch.path("token")),
            ..daemon::Options::default()
        };
        Daemon::start_with(scratch, name, &options)
    };
    let (here, there) = (host("here", "a"), host("there", "b"));
    let appear = Duration::from_secs(5);
    let vms = [here.wait_for_vm(guests[0].pid(), appear).0, there.wait_for_vm(guests[1].pid(), appear).0];
    here.sync(&vms[0].id);
    there.sync(&vms[1].id);
    TwoHosts { here, there, guests, vms }
}

impl TwoHosts {
    /// What the judge finds in the RAM of both.
    fn expected(&self) -> DiffCounts {
        let content = |daemon: &Daemon, vm: &Vm| {
            oracle::content(&daemon.vm_of(vm.pid).expect("it runs"), &daemon.pages(&vm.id))
        };
        let ours = content(&self.here, &self.vms[0]);
        let theirs: HashSet<String> = content(&self.there, &self.vms[1]).into_iter().flatten().collect();
        let mut counts = DiffCounts { total: ours.len() as u64, zero: 0, matched: 0, missing: 0, stale: 0 };
        for page in ours {
            match page {
                None => counts.zero += 1,
                Some(hash) if theirs.contains(&hash) => counts.matched += 1,
                Some(_) => counts.missing += 1,
            }
        }
        counts
    }

    fn check(&self, context: &str) -> DiffCounts {
        let expected = self.expected();
        for url in [self.there.tcp_url(), self.there.url()] {
            let diff = self.here.diff(&self.vms[0].id, &url);
            assert_eq!(diff.pages, expected, "{context}, asked at {url}");
            let DiffCounts { total, zero, matched, missing, stale } = expected;
            let bytes = [total, zero, matched, missing, stale].map(|pages| pages * PAGE);
            let shown = diff.bytes;
            assert_eq!([shown.total, shown.zero, shown.matched, shown.missing, shown.stale], bytes);
            assert_eq!(zero + matched + missing + stale, total);
        }
        expected
    }
}

#[test]
fn counts_are_exact_and_follow_the_guests() {
    let scratch = Scratch::new("diff");
    let mut hosts = two_hosts(&scratch);
    let first = hosts.check("at the start");
    // The program in page 0, and patterns 50,400 to 50,999.
    assert_eq!((first.matched, first.missing), (601, 400));

    hosts.guests[1].write(2000, 100, 50_000);
    hosts.guests[1].run("zero 900 50");
    hosts.there.sync(&hosts.vms[1].id);
    let second = hosts.check("after the other host has got and lost pages");
    assert_eq!((second.matched, second.missing), (651, 350));

    hosts.guests[0].run("zero 16 1000");
    hosts.here.sync(&hosts.vms[0].id);
    let third = hosts.check("after everything was zeroed here");
    assert_eq!((third.matched, third.missing), (1, 0));

    // The other way round, and by name.
    let back = hosts.there.diff(&hosts.vms[1].name, &hosts.here.tcp_url());
    assert_eq!(back.pages.matched, 1);
    assert_eq!(back.vm, hosts.vms[1].id);
}

#[test]
fn content_of_a_vm_that_has_ended_is_not_offered() {
    let scratch = Scratch::new("ended");
    let mut hosts = two_hosts(&scratch);
    assert_eq!(hosts.check("while it runs").matched, 601);
    let pid = hosts.guests[1].pid();
    hosts.guests[1].kill();
    memdex_tests::wait::until("the VM to vanish", Duration::from_secs(1), || {
        hosts.there.vm_of(pid).is_none().then_some(())
    });
    let diff = hosts.here.diff(&hosts.vms[0].id, &hosts.there.tcp_url());
    assert_eq!((diff.pages.matched, diff.pages.missing), (0, 1001));
}
