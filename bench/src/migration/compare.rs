//! memdex's migration beside QEMU's own: the same guest, the same caps, by turns, in one run.
//!
//! Owns the order of the measurements and the ratios that are promised. While one is measured all other guests stand still
//! and their daemons are stopped.

use std::{path::Path, time::Duration};

use memdex_tests::image::{self, QemuProgram, QemuVersion};

use super::{
    Cap, How, Run, chart,
    pair::Pair,
    qemu_modes::{self, Mode},
    relay,
    report::{self, Table},
    stage::{Case, Stage},
    warm,
};
use crate::figure::{Bound, Figures, median};

/// A blackout of QEMU's that is shorter counts as this: it is what memdex is asked for if nothing is said.
const SHORT_MS: f64 = 50.0;

/// QEMU's own migration in each of its modes, with and without a cap, of one Debian guest that goes on from place to place.
pub(crate) fn measure_qemu(rounds: usize) {
    warm::up();
    let mut pair = Pair::debian(&newest());
    let mut runs = Vec::new();
    for cap in Cap::ALL {
        for mode in Mode::ALL {
            let rounds = (0..rounds).map(|_| qemu_modes::run(mode, cap, &mut pair)).inspect(told);
            runs.push(Run::middle(&rounds.collect::<Vec<_>>()));
        }
    }
    println!("{}; {}", pair.about(), report::how_often(rounds));
    print!("{}", Table(&runs));
}

/// memdex's migration in each of its cases, for whoever works on it: a guest that returns does so at once.
pub(crate) fn measure_memdex(rounds: usize) {
    warm::up();
    eprintln!(
        "a guest that returns does so at once here: what it has on the wire is less than the bench proper has"
    );
    let qemu = newest();
    let (mut beside, mut alone) = (Stage::debian(&qemu, true), Stage::debian(&qemu, false));
    for cap in (0..rounds).flat_map(|_| Cap::ALL) {
        beside.begin();
        told(&beside.go_after(Duration::ZERO, Case::Sibling, cap));
        told(&beside.go_after(Duration::ZERO, Case::Returning, cap));
        beside.rest();
        for case in Case::ALONE.into_iter().filter(|case| case.is_measured(cap)) {
            alone.begin();
            told(&alone.go(case, cap));
            alone.rest();
        }
    }
}

/// Measures all that is compared; the table and the plot also go into the folder `docs`.
pub(crate) fn measure(figures: &mut Figures, rounds: usize, docs: Option<&Path>) {
    warm::up();
    let relay = relay::rate();
    eprintln!("the relay that counts passes {:.1} GB/s on by itself", relay / 1e9);
    let newest = newest();
    let mut about = String::new();
    let mut runs = turns(&newest, &Cap::ALL, &Mode::ALL, &Case::ALL, rounds, &mut about);
    let middle: Vec<Run> = How::all()
        .flat_map(|how| Cap::ALL.map(|cap| (how, cap)))
        .filter(|(how, cap)| how.is_measured(*cap))
        .map(|(how, cap)| of(&runs, newest.version, how, cap))
        .collect();
    promised(&Seen { runs: &middle, all: &runs, qemu: newest.version }, figures);

    // An old QEMU, for comparison: nothing is promised of it.
    let mut shown = middle.clone();
    let oldest = image::qemu_versions().expect("every QEMU there is").swap_remove(0);
    if oldest.version != newest.version {
        let (modes, cases) = ([Mode::Precopy, Mode::MultifdZstd], [Case::Sibling, Case::Returning]);
        runs = turns(&oldest, &[Cap::Gigabit], &modes, &cases, rounds, &mut about);
        let hows = modes.map(How::Qemu).into_iter().chain(cases.map(How::Memdex));
        shown.extend(hows.map(|how| of(&runs, oldest.version, how, Cap::Gigabit)));
    }
    shown.sort_by_key(|run| (std::cmp::Reverse(run.qemu), run.cap != Cap::Gigabit));
    println!("{about}; {}", report::how_often(rounds));
    print!("{}", Table(&shown));
    if let Some(folder) = docs {
        report::write(folder, &shown, &about, rounds).expect("the table can be written");
        chart::write(folder, &middle, Cap::Gigabit, &about).expect("the plot can be written");
    }
}

fn newest() -> QemuProgram {
    image::qemu_versions().expect("every QEMU there is").pop().expect("there is one")
}

fn told(run: &Run) {
    let (wire, total, blackout) = (run.wire_mib(), run.total_ms, run.blackout_ms);
    let busy = if run.busy { ", busy with something else" } else { "" };
    eprintln!(
        "  {}, cap {}: {wire:.1} MiB, {total:.0} ms, blackout {blackout:.1} ms{busy}",
        run.how, run.cap
    );
}

/// Measures in turns, so that whatever else this machine does meets all alike.
fn turns(
    qemu: &QemuProgram,
    caps: &[Cap],
    modes: &[Mode],
    cases: &[Case],
    rounds: usize,
    about: &mut String,
) -> Vec<Run> {
    eprintln!("QEMU {}", qemu.version);
    let mut beside = Stage::debian(qemu, true);
    let mut alone = cases.contains(&Case::Nothing).then(|| Stage::debian(qemu, false));
    let mut pair = Pair::debian(qemu);
    pair.rest();
    if about.is_empty() {
        *about = pair.about();
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |run: Run| {
        told(&run);
        runs.push(run);
    };
    for (_, cap) in (0..rounds).flat_map(|round| caps.iter().map(move |cap| (round, *cap))) {
        beside.begin();
        add(beside.go(Case::Sibling, cap));
        add(beside.go(Case::Returning, cap));
        beside.rest();
        if let Some(stage) = &mut alone {
            for case in Case::ALONE.into_iter().filter(|case| case.is_measured(cap)) {
                stage.begin();
                add(stage.go(case, cap));
                stage.rest();
            }
        }
        pair.begin();
        modes.iter().for_each(|mode| add(qemu_modes::run(*mode, cap, &mut pair)));
        pair.rest();
    }
    runs
}

/// The middle of what was measured of one kind.
fn of(runs: &[Run], qemu: QemuVersion, how: How, cap: Cap) -> Run {
    let these = runs.iter().filter(|run| run.qemu == qemu && run.how == how && run.cap == cap);
    Run::middle(&these.cloned().collect::<Vec<_>>())
}

/// What the ratios are made of.
struct Seen<'a> {
    /// The middle ones.
    runs: &'a [Run],
    /// Every one.
    all: &'a [Run],
    qemu: QemuVersion,
}

impl Seen<'_> {
    fn run(&self, how: How, cap: Cap) -> &Run {
        let found = self.runs.iter().find(|run| run.qemu == self.qemu && run.how == how && run.cap == cap);
        found.expect("every mode and case is measured with every cap")
    }

    fn wire(&self, case: Case, mode: Mode, cap: Cap) -> f64 {
        let baseline = self.run(How::Qemu(mode), cap).wire_bytes as f64;
        self.run(How::Memdex(case), cap).wire_bytes as f64 / baseline
    }

    fn time(&self, case: Case, cap: Cap) -> f64 {
        self.run(How::Memdex(case), cap).total_ms / report::best(self.runs, self.qemu, cap).total_ms
    }

    fn blackout(&self, memdex: bool) -> f64 {
        let these = self.all.iter().filter(|run| matches!(run.how, How::Memdex(_)) == memdex);
        let these: Vec<Run> = these.cloned().collect();
        median(Run::that_count(&these).iter().map(|run| run.blackout_ms).collect())
    }
}

fn promised(seen: &Seen<'_>, figures: &mut Figures) {
    const BYTES: &str = "bytes at the sockets at";
    let (gigabit, none) = (Cap::Gigabit, Cap::None);
    let wires = [
        ("migrate_sibling_wire_over_qemu", Case::Sibling, Mode::Precopy, gigabit, 0.10),
        ("migrate_sibling_wire_over_qemu_uncapped", Case::Sibling, Mode::Precopy, none, 0.10),
        ("migrate_sibling_wire_over_zstd", Case::Sibling, Mode::MultifdZstd, gigabit, 0.35),
        ("migrate_returning_wire_over_qemu", Case::Returning, Mode::Precopy, gigabit, 0.03),
        ("migrate_returning_wire_over_qemu_uncapped", Case::Returning, Mode::Precopy, none, 0.03),
        ("migrate_nothing_wire_over_zstd", Case::Nothing, Mode::MultifdZstd, gigabit, 1.02),
        ("migrate_nothing_wire_over_zstd_uncapped", Case::NothingPacked, Mode::MultifdZstd, none, 1.02),
    ];
    for (name, case, mode, cap, most) in wires {
        let words = match cap {
            Cap::Gigabit => format!("{BYTES} 1 Gb/s: {case} over {mode}"),
            Cap::None => format!("{BYTES} full speed: {case} over {mode}"),
        };
        figures.add(name, seen.wire(case, mode, cap), "x", Bound::AtMost(most), words);
    }
    figures.add(
        "migrate_sibling_time_over_qemu",
        seen.time(Case::Sibling, gigabit),
        "x",
        Bound::AtMost(0.5),
        "until the guest runs there, at 1 Gb/s, over QEMU's fastest mode",
    );
    // Who asks for fewest bytes has not asked for least time.
    let times =
        Cap::ALL.into_iter().flat_map(|cap| Case::DEFAULT.map(|case| (seen.time(case, cap), case, cap)));
    if let Some((worst, case, cap)) = times.max_by(|a, b| a.0.total_cmp(&b.0)) {
        figures.add(
            "migrate_worst_time_over_qemu",
            worst,
            "x",
            Bound::AtMost(1.1),
            format!("the worst of all cases, over QEMU's fastest mode: {case}, cap {cap}"),
        );
    }
    let (ours, theirs) = (seen.blackout(true), seen.blackout(false));
    figures.add(
        "blackout_over_qemu",
        ours / theirs.max(SHORT_MS),
        "x",
        Bound::AtMost(1.0),
        format!("middle of all: {ours:.0} ms over QEMU's {theirs:.0} ms, at least {SHORT_MS:.0} ms"),
    );
}
