//! Values on the command line that more than one command takes: where to, how fast.
//!
//! Each mistake gets its own advice. Nothing here asks a host.

use std::time::Duration;

use migrate_client::{HostUrl, ParseHostUrlError};

/// Another host: a URL or the name of a peer. A mistyped URL is found here; whether a name is a peer's, only the daemon
/// can say.
pub(super) fn host(text: &str) -> Result<String, ParseHostUrlError> {
    let is_name =
        !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if is_name { Ok(text.to_owned()) } else { text.parse::<HostUrl>().map(|url| url.to_string()) }
}

/// Bytes a second: `125000000`, `125M`. Like the speeds of links, the suffixes are powers of a thousand.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    const FORMS: &str = "write bytes a second, such as 125000000 or 125M (K, M and G are thousands)";
    let (digits, scale) = match text.char_indices().last() {
        Some((end, 'k' | 'K')) => (&text[..end], 1_000),
        Some((end, 'm' | 'M')) => (&text[..end], 1_000_000),
        Some((end, 'g' | 'G')) => (&text[..end], 1_000_000_000),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(FORMS.to_owned());
    }
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)) {
        Some(0) => Err("nothing moves at 0 bytes a second: leave the option out for no limit".to_owned()),
        Some(rate) => Ok(rate),
        None => Err("no link is that fast: leave the option out for no limit".to_owned()),
    }
}

/// For how long the guest may stand still.
pub(super) fn downtime(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_millis() == 0 => Err("no guest moves in less than 1ms".to_owned()),
        Ok(time) if time > Duration::from_secs(3600) => {
            Err("1h is the most; --on-no-converge stop needs no limit".to_owned())
        }
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it like 50ms or 1s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_bytes_a_second_in_thousands() {
        for (text, rate) in
            [("1", 1), ("125M", 125_000_000), ("64k", 64_000), ("1G", 1_000_000_000), ("007", 7)]
        {
            assert_eq!(bandwidth(text), Ok(rate), "{text}");
        }
        for (text, advice) in [
            ("", "125M"),
            ("M", "125M"),
            ("-1", "125M"),
            ("1.5G", "125M"),
            ("1 M", "125M"),
            ("1Gbit", "125M"),
            ("0", "no limit"),
            ("0G", "no limit"),
            ("18446744073709551616", "no limit"),
            ("99999999999G", "no limit"),
            ("12ö", "125M"),
        ] {
            assert!(bandwidth(text).unwrap_err().contains(advice), "{text}");
        }
    }

    #[test]
    fn a_downtime_is_neither_nothing_nor_for_ever() {
        assert_eq!(downtime("50ms"), Ok(Duration::from_millis(50)));
        for (text, advice) in
            [("0ms", "1ms"), ("999us", "1ms"), ("2h", "1h"), ("soon", "50ms"), ("50", "50ms")]
        {
            assert!(downtime(text).unwrap_err().contains(advice), "{text}");
        }
    }
}
