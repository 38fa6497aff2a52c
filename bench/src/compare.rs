//! The figures of this run beside those of an earlier one. Owns reading the earlier file, and the table, which says what got better or
//! worse; whether a figure keeps its promise is [`super::figure`]'s to say.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use serde::Deserialize;

/// Changes below this are what two runs of the same program differ by.
const NOISE: f64 = 0.10;

/// A figure of an earlier run, as [`super::figure::Figures::write`] wrote it.
#[derive(Debug, Deserialize)]
struct Earlier {
    name: String,
    value: f64,
    unit: String,
}

/// The figures of an earlier run.
#[derive(Debug)]
pub(crate) struct Before(BTreeMap<String, Earlier>);

/// A figure of this run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: f64,
    pub(crate) unit: &'a str,
    /// Whether a larger value is a better one.
    pub(crate) more_is_better: bool,
}

impl Before {
    /// Reads what `--json` wrote.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let say = |error: &dyn fmt::Display| format!("cannot compare with {}: {error}", file.display());
        let text = fs::read_to_string(file).map_err(|error| say(&error))?;
        let figures: Vec<Earlier> = serde_json::from_str(&text).map_err(|error| {
            say(&format_args!("not the figures of a run ([{{\"name\",\"value\",\"unit\"}}]): {error}"))
        })?;
        Ok(Self(figures.into_iter().map(|figure| (figure.name.clone(), figure)).collect()))
    }

    /// A table of both: a line for each figure of this run, then the names that only the earlier one has.
    pub(crate) fn table<'a>(&self, now: impl IntoIterator<Item = Now<'a>>) -> String {
        let mut lines =
            vec!["| figure | before | now | now / before | |".to_owned(), "|---|--:|--:|--:|---|".to_owned()];
        let mut gone = self.0.keys().map(String::as_str).collect::<Vec<_>>();
        for figure in now {
            gone.retain(|name| *name != figure.name);
            lines.push(self.line(&figure));
        }
        if !gone.is_empty() {
            lines.push(String::new());
            lines.push(format!("Not measured in this run: {}.", gone.join(", ")));
        }
        lines.join("\n") + "\n"
    }

    fn line(&self, now: &Now<'_>) -> String {
        let Now { name, value, unit, more_is_better } = *now;
        let Some(before) = self.0.get(name) else {
            return format!("| `{name}` | – | {value:.3} {unit} | – | new |");
        };
        if before.unit != unit {
            return format!(
                "| `{name}` | {:.3} {} | {value:.3} {unit} | – | in another unit |",
                before.value, before.unit
            );
        }
        let ratio = value / before.value;
        let word = if !ratio.is_finite() || (ratio - 1.0).abs() <= NOISE {
            ""
        } else if (ratio > 1.0) == more_is_better {
            "better"
        } else {
            "WORSE"
        };
        let shown = if ratio.is_finite() { format!("{ratio:.2}") } else { "–".to_owned() };
        format!("| `{name}` | {:.3} {unit} | {value:.3} {unit} | {shown} | {word} |", before.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(text: &str) -> Result<Before, String> {
        let folder =
            std::env::temp_dir().join(format!("memdex-compare-{}-{}", std::process::id(), text.len()));
        fs::write(&folder, text).expect("a file in the temporary folder");
        let read = Before::read(&folder);
        fs::remove_file(&folder).expect("it is there");
        read
    }

    fn now(name: &str, value: f64, more_is_better: bool) -> Now<'_> {
        Now { name, value, unit: "ratio", more_is_better }
    }

    #[test]
    fn what_is_worse_depends_on_what_the_figure_counts() {
        let before = before(
            r#"[{"name":"speed","value":2,"unit":"ratio"},{"name":"cost","value":2,"unit":"ratio"},
                {"name":"steady","value":2,"unit":"ratio"},{"name":"gone","value":1,"unit":"ms"},
                {"name":"renamed","value":1,"unit":"ms"},{"name":"nothing","value":0,"unit":"ratio"}]"#,
        )
        .expect("figures");
        let table = before.table([
            now("speed", 1.0, true),
            now("cost", 1.0, false),
            now("steady", 2.1, false),
            now("fresh", 1.0, true),
            now("renamed", 1.0, true),
            now("nothing", 1.0, false),
        ]);
        let words: Vec<&str> =
            table.lines().skip(2).take(6).map(|line| line.rsplit('|').nth(1).unwrap_or("").trim()).collect();
        assert_eq!(words, ["WORSE", "better", "", "new", "in another unit", ""], "{table}");
        assert!(table.ends_with("Not measured in this run: gone.\n"), "{table}");
    }

    #[test]
    fn what_is_no_run_is_refused_in_a_sentence() {
        for text in ["", "{}", "[1]", r#"[{"name":"x"}]"#] {
            let error = before(text).expect_err(text);
            assert!(
                error.starts_with("cannot compare with ") && error.contains("not the figures"),
                "{error}"
            );
        }
        let error = Before::read(Path::new("/nonexistent/figures")).expect_err("there is no such file");
        assert!(error.contains("No such file"), "{error}");
    }
}
