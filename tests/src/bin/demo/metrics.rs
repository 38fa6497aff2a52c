//! Figures of a daemon, from `GET /metrics`. Owns how they are found in the text.

/// One reading of `/metrics`.
#[derive(Debug)]
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of a figure over all samples whose labels contain `label`.
    pub(crate) fn sum(&self, name: &str, label: &str) -> f64 {
        self.samples(name).filter(|(labels, _)| labels.contains(label)).map(|(_, value)| value).sum()
    }

    /// The samples of a figure: labels and value.
    fn samples(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| Some((labels, value.parse().ok()?)))?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let text = "# HELP memdex_x x\nmemdex_x 3\nmemdex_xy 9\nmemdex_x{vm=\"a b\",s=\"1\"} 4.5\nmemdex_x{vm=\"c\"} 1\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum("memdex_x", ""), 8.5);
        assert_eq!(metrics.sum("memdex_x", "vm=\"a b\""), 4.5);
        assert_eq!(metrics.sum("memdex_z", ""), 0.0);
    }
}
