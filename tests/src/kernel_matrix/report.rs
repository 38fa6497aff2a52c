//! What a host under test says of itself: one line of JSON for each thing, over a serial port of its own, so that nothing
//! the kernel prints gets between.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Something the kernel has or has not, for the table.
    Fact {
        /// What, as `PAGEMAP_SCAN`.
        name: String,
        /// In a word or two.
        value: String,
    },
    /// A check has begun; if nothing follows, it is the one that did not end.
    Begin {
        /// Its name.
        check: String,
    },
    /// A check has ended.
    Check {
        /// Its name.
        check: String,
        /// Whether it passed.
        passed: bool,
        /// What was seen.
        detail: String,
        /// How long it took.
        seconds: f64,
    },
    /// The report is complete.
    End,
}

impl Line {
    /// Reads a line; what is none is none of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim()).ok()
    }

    /// Writes it.
    ///
    /// # Errors
    /// What the port says.
    pub fn write(&self, port: &mut impl Write) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        port.write_all(text.as_bytes())
    }

    /// For whoever watches, if there is anything to say.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
        match self {
            Self::Fact { name, value } => Some(format!("     {name}: {value}")),
            Self::Check { check, passed, detail, seconds } => {
                let verdict = if *passed { "ok  " } else { "FAIL" };
                Some(format!("{verdict} {check} ({seconds:.1} s): {detail}"))
            }
            Self::Begin { .. } | Self::End => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written_and_noise_is_none() {
        let lines = [
            Line::Fact { name: "KVM".into(), value: "yes".into() },
            Line::Check { check: "a\nb".into(), passed: false, detail: "\"".into(), seconds: 0.5 },
            Line::End,
        ];
        for line in lines {
            let mut text = Vec::new();
            line.write(&mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text.lines().count(), 1);
            assert_eq!(Line::parse(&text.replace('\n', "\r\n")), Some(line));
        }
        assert_eq!(Line::parse("[    1.0] Kernel panic"), None);
        assert_eq!(Line::parse("{\"check\":{}}"), None);
    }
}
