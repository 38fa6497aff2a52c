//! What the demo was asked for. `cargo xtask demo --help` describes it to people.

use std::path::PathBuf;

/// The options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Tiny guests that boot in seconds instead of Debian.
    pub(crate) fast: bool,
    /// Where to write the summary.
    pub(crate) json: Option<PathBuf>,
}

impl Arguments {
    /// Understands `--fast` and `--json FILE`.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fast" => arguments.fast = true,
                "--json" => {
                    let file = words.next().ok_or("--json wants the name of a file")?;
                    arguments.json = Some(file.into());
                }
                _ => return Err(format!("{word} is not an option; there are --fast and --json FILE")),
            }
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Arguments, String> {
        Arguments::parse(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_understood_or_named() {
        assert_eq!(parse("").unwrap(), Arguments::default());
        let both = Arguments { fast: true, json: Some("x.json".into()) };
        assert_eq!(parse("--json x.json --fast").unwrap(), both);
        assert!(parse("--json").unwrap_err().contains("name of a file"));
        assert!(parse("--slow").unwrap_err().contains("--slow"));
    }
}
