//! What goes to stdout: tables for people, JSON for programs; and how figures look in words.
//!
//! Owns the stdout of the process. Never talks: that is stderr's business.

use std::{
    io::{self, BufWriter, Stdout, Write},
    time::Duration,
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use migrate_client::{limits, printable};
use serde::Serialize;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Buffered stdout in the format that was asked for.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    out: BufWriter<Stdout>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, out: BufWriter::with_capacity(64 << 10, io::stdout()) }
    }

    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// One object: indented for `json`, a line for `jsonl`.
    pub(crate) fn document<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        match self.format {
            Format::Jsonl => serde_json::to_writer(&mut self.out, value)?,
            Format::Json | Format::Table => serde_json::to_writer_pretty(&mut self.out, value)?,
        }
        self.out.write_all(b"\n")
    }

    /// One object without a line end, for arrays that are written piece by piece.
    pub(crate) fn compact<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        Ok(serde_json::to_writer(&mut self.out, value)?)
    }

    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())
    }

    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Columns without rules around them: easy on the eye, and on `awk`. Columns named with a leading `>` hold figures.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|name| name.trim_start_matches('>')));
    for (column, name) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        if name.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Text of a table, with a line end.
pub(crate) fn lines(table: &Table) -> String {
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// A peer's text as it may stand on a terminal: on one line, and no longer than it should be.
pub(crate) fn told(text: &str) -> String {
    let mut short: String = printable(text).chars().take(limits::MAX_DETAIL_CHARS + 1).collect();
    if short.chars().count() > limits::MAX_DETAIL_CHARS {
        short.pop();
        short.push('…');
    }
    short
}

/// `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = (count.ilog2() / 10).min(6);
    let scaled = count as f64 / 2f64.powi(power as i32 * 10);
    // 1023.96 would be written as 1024.0 of the smaller unit.
    let (scaled, power) =
        if scaled >= 1023.95 && power < 6 { (scaled / 1024.0, power + 1) } else { (scaled, power) };
    format!("{scaled:.1} {}", UNITS[power as usize - 1])
}

/// `12.3 %`; `0 %` and `100 %` only if it is exactly that.
pub(crate) fn percent(part: u64, total: u64) -> String {
    match part {
        _ if total == 0 => "–".to_owned(),
        0 => "0 %".to_owned(),
        _ if part >= total => "100 %".to_owned(),
        _ => format!("{:.1} %", (part as f64 * 100.0 / total as f64).clamp(0.1, 99.9)),
    }
}

/// `950 µs`, `12.3 ms`, `4.2 s`, `3min 5s`.
pub(crate) fn duration(time: Duration) -> String {
    match time.as_micros() {
        us @ 0..1_000 => format!("{us} µs"),
        us @ 1_000..999_950 => format!("{:.1} ms", us as f64 / 1e3),
        us @ 0..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        _ => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
    }
}

/// `262,144`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 20, (1 << 30) - 1, 5 << 30, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 GiB", "5.0 GiB", "16.0 EiB"]
        );
        assert_eq!(
            [0, 7, 999, 1000, 262_144, 12_345_678].map(count),
            ["0", "7", "999", "1,000", "262,144", "12,345,678"]
        );
        let times = [0, 999, 1000, 12_345, 999_949, 999_999, 59_900_000, 185_000_000];
        assert_eq!(
            times.map(|us| duration(Duration::from_micros(us))),
            ["0 µs", "999 µs", "1.0 ms", "12.3 ms", "999.9 ms", "1.0 s", "59.9 s", "3m 5s"]
        );
    }

    #[test]
    fn a_peers_text_is_bounded_and_steers_nothing() {
        assert_eq!(told("all\u{1b}[31m\n good"), "all\u{fffd}[31m\u{fffd} good");
        assert_eq!(told(&"ä".repeat(limits::MAX_DETAIL_CHARS)), "ä".repeat(limits::MAX_DETAIL_CHARS));
        let long = told(&"ä".repeat(100_000));
        assert!(long.ends_with('…') && long.chars().count() == limits::MAX_DETAIL_CHARS + 1);
    }

    #[test]
    fn nothing_is_rounded_to_all_or_none() {
        assert_eq!(percent(0, 9), "0 %");
        assert_eq!(percent(1, 1_000_000), "0.1 %");
        assert_eq!(percent(999_999, 1_000_000), "99.9 %");
        assert_eq!(percent(5, 5), "100 %");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(0, 0), "–");
    }
}
