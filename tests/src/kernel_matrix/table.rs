//! The table at the end: what each kernel gives. One row for each thing, one column for each kernel.

use super::Finding;

/// Draws the table.
#[must_use]
pub fn table(findings: &[Finding]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in findings.iter().flat_map(Finding::facts) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut rows = vec![row("", findings, |finding| finding.name().to_owned())];
    for name in names {
        rows.push(row(name, findings, |finding| {
            let fact = finding.facts().iter().rfind(|(known, _)| known == name);
            fact.map_or("-".to_owned(), |(_, value)| value.clone())
        }));
    }
    rows.push(row("checks passed", findings, |finding| {
        let (passed, all) = finding.checks();
        format!("{passed} of {all}")
    }));
    rows.push(row("seconds", findings, |finding| format!("{:.0}", finding.took().as_secs_f64())));
    rows.push(row("verdict", findings, |finding| {
        if finding.passed() { "passed".to_owned() } else { "FAILED".to_owned() }
    }));
    layout(&rows)
}

fn row(name: &str, findings: &[Finding], value: impl Fn(&Finding) -> String) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(findings.iter().map(value)).collect()
}

fn layout(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_matrix::{boot::Ended, report::Line};

    #[test]
    fn what_one_kernel_does_not_say_is_a_dash() {
        let fact = |name: &str| Line::Fact { name: name.into(), value: "yes".into() };
        let check = Line::Check { check: "c".into(), passed: true, detail: String::new(), seconds: 0.0 };
        let mut old = Finding::of("6.1");
        [fact("KVM"), check.clone(), Line::End].into_iter().for_each(|line| old.take(line));
        old.end(Ended::Off, std::time::Duration::from_secs(7));
        let mut new = Finding::of("6.12");
        [fact("KVM"), fact("scan"), check].into_iter().for_each(|line| new.take(line));
        new.end(Ended::Off, std::time::Duration::from_secs(8));
        let text = table(&[old, new]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["6.1", "6.12"]);
        assert_eq!(lines[1], ["KVM", "yes", "yes"]);
        assert_eq!(lines[2], ["scan", "-", "yes"]);
        assert_eq!(lines.last().unwrap()[..], ["verdict", "passed", "FAILED"]);
    }
}
