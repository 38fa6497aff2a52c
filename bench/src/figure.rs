//! Figures, their bounds, and how they are shown.

use std::{fmt, fs, io, path::Path};

use serde::Serialize;

use crate::compare::Now;

/// What a figure has to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A measured figure.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    #[serde(skip)]
    bound: Bound,
    #[serde(skip)]
    how: String,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    /// Adds a figure; `how` says in some words what was compared with what.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        value: f64,
        unit: &'static str,
        bound: Bound,
        how: impl Into<String>,
    ) {
        let how = how.into();
        eprintln!("  {name} = {value:.3} {unit}  ({how})");
        self.0.push(Figure { name, value, unit, bound, how });
    }

    /// Whether nothing was measured.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn write(&self, file: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.0).map_err(io::Error::other)?;
        fs::write(file, text + "\n")
    }

    /// What is to be compared with an earlier run.
    pub(crate) fn shown(&self) -> impl Iterator<Item = Now<'_>> {
        self.0.iter().map(|figure| Now {
            name: figure.name,
            value: figure.value,
            unit: figure.unit,
            more_is_better: matches!(figure.bound, Bound::AtLeast(_)),
        })
    }

    pub(crate) fn all_within_bounds(&self) -> bool {
        self.0.iter().all(Figure::within_bounds)
    }
}

impl Figure {
    fn within_bounds(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.value >= least,
            Bound::AtMost(most) => self.value <= most,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| figure | measured | promised | | how |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for figure in &self.0 {
            let (bound, met) = match figure.bound {
                Bound::AtLeast(least) => (format!("≥ {least}"), figure.within_bounds()),
                Bound::AtMost(most) => (format!("≤ {most}"), figure.within_bounds()),
            };
            let verdict = if met { "" } else { "SHORT" };
            let Figure { name, value, unit, how, .. } = figure;
            writeln!(f, "| `{name}` | {value:.3} {unit} | {bound} | {verdict} | {how} |")?;
        }
        Ok(())
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
