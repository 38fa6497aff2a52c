//! Measured migrations as a plot: bars in an SVG, written by hand.

use std::{fmt::Write, fs, io, path::Path};

use super::{Cap, How, Run};
use crate::svg::{self, text};

const WIDTH: f64 = 960.0;
/// Room for the names at the left.
const NAMES: f64 = 220.0;
/// From one bar to the next.
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
/// Room for the titles above the bars, and for the notes below.
const HEAD: f64 = 70.0;
const FOOT: f64 = 34.0;
/// Part of a panel that its longest bar takes; its figure follows.
const LONGEST: f64 = 0.62;
const QEMU: &str = "#9aa5b1";
const MEMDEX: &str = "#1f6feb";

/// A figure that has a panel: its title, its unit, where it is found.
type Panel = (&'static str, &'static str, fn(&Run) -> f64);

const PANELS: [Panel; 3] = [
    ("on the wire", "MiB", Run::wire_mib),
    ("until the guest runs there", "ms", |run| run.total_ms),
    ("blackout", "ms", |run| run.blackout_ms),
];

/// Writes `migration.svg` into a folder: the runs with this cap.
pub(super) fn write(folder: &Path, runs: &[Run], cap: Cap, about: &str) -> io::Result<()> {
    let runs: Vec<&Run> = runs.iter().filter(|run| run.cap == cap).collect();
    fs::write(folder.join("migration.svg"), draw(&runs, cap, about))
}

fn draw(runs: &[&Run], cap: Cap, about: &str) -> String {
    let height = HEAD + ROW * runs.len() as f64 + FOOT;
    let mut svg = svg::open(WIDTH, height);
    text(&mut svg, 16.0, 26.0, "font-size=\"15\" font-weight=\"600\"", &format!("Live migration at {cap}"));
    for (row, run) in runs.iter().enumerate() {
        let weight = if is_ours(run) { "font-weight=\"600\"" } else { "" };
        text(&mut svg, 16.0, middle(row) + 4.0, weight, &run.how.to_string());
    }
    let panel = (WIDTH - NAMES - 16.0) / PANELS.len() as f64;
    for (number, (title, unit, figure)) in PANELS.into_iter().enumerate() {
        let left = NAMES + panel * number as f64;
        text(&mut svg, left, HEAD - 14.0, "fill=\"#52606d\"", &format!("{title}, {unit}"));
        let most = runs.iter().map(|run| figure(run)).fold(f64::MIN_POSITIVE, f64::max);
        for (row, run) in runs.iter().enumerate() {
            let (value, colour) = (figure(run), if is_ours(run) { MEMDEX } else { QEMU });
            let (length, top) = ((panel * LONGEST * value / most).max(1.0), middle(row) - BAR / 2.0);
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>"
            );
            let shown = if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
            text(&mut svg, left + length + 6.0, middle(row) + 4.0, "", &shown);
        }
    }
    text(&mut svg, 16.0, height - 14.0, "font-size=\"11\" fill=\"#7b8794\"", about);
    svg + "</svg>\n"
}

fn is_ours(run: &Run) -> bool {
    matches!(run.how, How::Memdex(_))
}

fn middle(row: usize) -> f64 {
    HEAD + ROW * (row as f64 + 0.5)
}
