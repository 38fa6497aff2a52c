//! How figures look in words.

use std::time::Duration;

/// `67.9 MiB`, `3.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1023.95 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// `262,144`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `950 µs`, `12.3 ms`, `4.2 s`.
pub(crate) fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1e-3 => format!("{} µs", time.as_micros()),
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 100.0 => format!("{seconds:.1} s"),
        seconds => format!("{} min {:.0} s", (seconds / 60.0) as u64, seconds % 60.0),
    }
}

/// `13.2 %`; never rounded to none or all.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    match part {
        0 => "0 %".to_owned(),
        _ if part >= whole => "100 %".to_owned(),
        _ => format!("{:.1} %", (part as f64 * 100.0 / whole as f64).clamp(0.1, 99.9)),
    }
}

/// The value below which this share of a sorted list is.
pub(crate) fn quantile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [0, 71_198_310, (1 << 30) - 1, 3 << 30].map(size),
            ["0.0 MiB", "67.9 MiB", "1.0 GiB", "3.0 GiB"]
        );
        assert_eq!([7, 1000, 12_345_678].map(count), ["7", "1,000", "12,345,678"]);
        let times = [999, 12_345, 4_200_000, 125_000_000].map(|us| time(Duration::from_micros(us)));
        assert_eq!(times, ["999 µs", "12.3 ms", "4.2 s", "2 min 5 s"]);
        assert_eq!(
            [(0, 9), (1, 100_000), (1, 3), (9, 9)].map(|(p, w)| percent(p, w)),
            ["0 %", "0.1 %", "33.3 %", "100 %"]
        );
    }

    #[test]
    fn quantiles_stay_in_the_list() {
        let list: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&list, 0.0), Some(list[0]));
        assert_eq!(quantile(&list, 1.0), Some(list[99]));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
