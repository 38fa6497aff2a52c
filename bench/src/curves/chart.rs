//! The curves as a plot: six panels in an SVG.

use std::{fmt::Write as _, fs, io, path::Path};

use super::{Curves, peers, rate, size};
use crate::svg::{self, text};

const COLUMNS: usize = 3;
const PANEL: (f64, f64) = (320.0, 230.0);
/// Room around the lines of a panel: left, top, right, bottom.
const ROOM: [f64; 4] = [52.0, 58.0, 22.0, 40.0];
const BLUE: &str = "#1f6feb";
const LIGHT: &str = "#8ab8ff";
const GREY: &str = "#52606d";
const PALE: &str = "#b8c0ca";

/// A line: its name, its colour, and its points from left to right.
struct Line {
    name: &'static str,
    colour: &'static str,
    points: Vec<(f64, f64)>,
}

struct Panel {
    title: &'static str,
    below: &'static str,
    /// Whether each step upwards is ten times as much.
    decades: bool,
    lines: Vec<Line>,
}

/// Writes `curves.svg` into a folder.
pub(super) fn write(folder: &Path, curves: &Curves) -> io::Result<()> {
    fs::write(folder.join("curves.svg"), draw(&panels(curves)))
}

fn panels(curves: &Curves) -> [Panel; 6] {
    let peers = |name, colour, of: fn(&peers::Point) -> f64| {
        let points = curves.peers.iter().map(|point| (point.peers as f64, of(point))).collect();
        Line { name, colour, points }
    };
    let sizes = |name, colour, of: fn(&size::Point) -> f64| {
        let points = curves.sizes.iter().map(|point| (point.mib as f64 / 1024.0, of(point))).collect();
        Line { name, colour, points }
    };
    let rates = |budget, name, colour, of: fn(&rate::Point) -> f64| {
        let these = curves.rates.iter().filter(|point| point.budget == rate::BUDGETS[budget]);
        Line { name, colour, points: these.map(|point| (point.per_second as f64, of(point))).collect() }
    };
    let panel = |title, below, decades, lines| Panel { title, below, decades, lines };
    [
        panel("first index, s", "GiB of memory", false, vec![sizes("", BLUE, |point| point.seconds)]),
        panel(
            "freshness, ms",
            "pages written a second",
            true,
            vec![
                rates(0, "p99, budget 1 %", BLUE, |point| point.p99_ms),
                rates(0, "p50", LIGHT, |point| point.p50_ms),
                rates(1, "p99, no budget", GREY, |point| point.p99_ms),
                rates(1, "p50", PALE, |point| point.p50_ms),
            ],
        ),
        panel(
            "a known diff, ms",
            "peers",
            false,
            vec![
                peers("longest", LIGHT, |point| point.longest_ms),
                peers("middle", BLUE, |point| point.known_ms),
            ],
        ),
        panel(
            "memory of the daemon, bytes a page",
            "GiB of memory",
            false,
            vec![
                sizes("all", BLUE, |point| point.bytes_per_page),
                sizes("beyond its own", LIGHT, |point| point.more_bytes_per_page),
            ],
        ),
        panel(
            "daemon's CPU time, % of a core",
            "pages written a second",
            false,
            vec![
                rates(0, "budget 1 %", BLUE, |point| point.cpu_percent),
                rates(1, "no budget", GREY, |point| point.cpu_percent),
            ],
        ),
        panel(
            "memory for peers, MiB",
            "peers",
            false,
            vec![
                peers("all of it", LIGHT, |point| point.more_mib),
                peers("pictures", BLUE, |point| point.pictures_mib),
            ],
        ),
    ]
}

fn draw(panels: &[Panel]) -> String {
    let (width, height) = PANEL;
    let rows = panels.len().div_ceil(COLUMNS);
    let mut svg = svg::open(width * COLUMNS as f64, height * rows as f64);
    for (number, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, width * (number % COLUMNS) as f64, height * (number / COLUMNS) as f64);
    }
    svg + "</svg>\n"
}

impl Panel {
    fn draw(&self, svg: &mut String, x: f64, y: f64) {
        let [left, top, right, bottom] = ROOM;
        let (from, to) = ((x + left, y + PANEL.1 - bottom), (x + PANEL.0 - right, y + top));
        text(svg, x + 16.0, y + 22.0, "font-size=\"13\" font-weight=\"600\"", self.title);
        let all = || self.lines.iter().flat_map(|line| &line.points).filter(|(_, value)| value.is_finite());
        let (first, last) = edges(all().map(|(at, _)| at.log2()));
        let (least, most) = self.scale(edges(all().map(|(_, value)| *value)));
        let across = |at: f64| from.0 + (to.0 - from.0) * (at.log2() - first) / (last - first);
        let up = |value: f64| from.1 + (to.1 - from.1) * (self.height(value) - least) / (most - least);
        for step in 0..=3 {
            let height = least + (most - least) * f64::from(step) / 3.0;
            let value = if self.decades { 10_f64.powf(height) } else { height };
            let line = up(value);
            let _ = writeln!(
                svg,
                "<path d=\"M{:.1} {line:.1}H{:.1}\" stroke=\"#e4e7eb\" fill=\"none\"/>",
                from.0, to.0
            );
            text(
                svg,
                from.0 - 6.0,
                line + 4.0,
                "text-anchor=\"end\" font-size=\"10\" fill=\"#7b8794\"",
                &short(value),
            );
        }
        for (at, _) in self.lines.first().map(|line| line.points.as_slice()).unwrap_or_default() {
            text(
                svg,
                across(*at),
                from.1 + 15.0,
                "text-anchor=\"middle\" font-size=\"10\" fill=\"#7b8794\"",
                &short(*at),
            );
        }
        let middle = f64::midpoint(from.0, to.0);
        text(
            svg,
            middle,
            from.1 + 30.0,
            "text-anchor=\"middle\" font-size=\"11\" fill=\"#52606d\"",
            self.below,
        );
        let mut legend = from.0;
        for Line { name, colour, points } in &self.lines {
            let there = points.iter().filter(|(_, value)| value.is_finite());
            let path: Vec<String> =
                there.clone().map(|(at, value)| format!("{:.1} {:.1}", across(*at), up(*value))).collect();
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>",
                path.join("L")
            );
            for (at, value) in there {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                    across(*at),
                    up(*value)
                );
            }
            text(svg, legend, y + 42.0, &format!("font-size=\"11\" fill=\"{colour}\""), name);
            legend += 10.0 + 6.0 * name.len() as f64;
        }
    }

    /// How high a value is drawn, on the scale of the panel.
    fn height(&self, value: f64) -> f64 {
        if self.decades { value.max(1e-3).log10() } else { value }
    }

    /// Lower and upper end of the scale.
    fn scale(&self, (least, most): (f64, f64)) -> (f64, f64) {
        if self.decades {
            let (least, most) = (self.height(least).floor(), self.height(most).ceil());
            return (least, most.max(least + 1.0));
        }
        // Three steps of a round number.
        let step = most.max(1e-9) / 3.0;
        let unit = 10_f64.powf(step.log10().floor());
        let round = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0].map(|round| round * unit);
        (0.0, 3.0 * round.into_iter().find(|round| *round >= step).unwrap_or(10.0 * unit))
    }
}

/// The least and the greatest; a little apart, so that something can be drawn between them.
fn edges(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    match least < most {
        true => (least, most),
        false if least.is_finite() => (least, least + 1.0),
        false => (0.0, 1.0),
    }
}

/// A number in few characters.
fn short(value: f64) -> String {
    match value {
        10_000.0.. => format!("{:.0}k", value / 1000.0),
        1000.0.. => format!("{}k", (value / 100.0).round() / 10.0),
        10.0.. => format!("{value:.0}"),
        _ => format!("{}", (value * 100.0).round() / 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_has_room_for_all_and_round_steps() {
        let panel = |decades| Panel { title: "", below: "", decades, lines: Vec::new() };
        assert_eq!(panel(false).scale((0.4, 5.0)), (0.0, 6.0));
        assert_eq!(panel(false).scale((1.0, 90.0)), (0.0, 90.0));
        assert_eq!(panel(true).scale((30.0, 4000.0)), (1.0, 4.0));
        assert_eq!(edges([2.0].into_iter()), (2.0, 3.0));
        assert_eq!([50_000.0, 1000.0, 64.0, 0.25].map(short), ["50k", "1k", "64", "0.25"]);
    }

    #[test]
    fn what_never_became_known_is_left_out_of_the_line() {
        let points = vec![(1.0, 1.0), (2.0, f64::INFINITY), (4.0, 2.0)];
        let line = Line { name: "a < b", colour: BLUE, points };
        let svg = draw(&[Panel { title: "t", below: "x", decades: false, lines: vec![line] }]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(!svg.contains("inf") && !svg.contains("NaN") && svg.contains("a &lt; b"), "{svg}");
    }
}
