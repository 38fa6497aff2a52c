//! A cold diff: what does a host that was never asked before lack of a 1 GiB VM?

use memdex_tests::Scratch;

use crate::{
    daemon,
    figure::{Bound, Figures, median},
    vmm::Vmm,
};

const MIB: usize = 1024;
const PAGES: usize = MIB << 8;
const ROUNDS: usize = 5;

pub(crate) fn measure(figures: &mut Figures) {
    eprintln!("diff of {MIB} MiB, half of it at the other host, {ROUNDS} rounds");
    let scratch = Scratch::new("bench-diff");
    let (here, there) =
        (Vmm::start(&scratch, "here", MIB, PAGES / 2, 1), Vmm::start(&scratch, "there", MIB, PAGES / 2, 2));
    let first = daemon::start(&scratch, "first", &format!("*-{}", here.pid()));
    let second = daemon::start(&scratch, "second", &format!("*-{}", there.pid()));
    let vm = daemon::indexed(&first, here.pid());
    daemon::indexed(&second, there.pid());
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let diff = first.diff(&vm.id, &second.tcp_url());
        assert_eq!(
            (diff.pages.matched, diff.pages.missing),
            (PAGES as u64 / 2, PAGES as u64 / 2),
            "half of the pages are at the other host"
        );
        times.push(diff.elapsed_us as f64 / 1e3);
    }
    let how = format!("{PAGES} different pages, half of them held by the peer, TCP on loopback");
    figures.add("diff_cold_1gib_ms", median(times), "ms", Bound::AtMost(100.0), how);
}
