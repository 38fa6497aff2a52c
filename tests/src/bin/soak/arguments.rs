//! What the soak was asked for. `cargo xtask soak --help` describes it to people.

use std::path::PathBuf;

/// The options.
#[derive(Debug, PartialEq)]
pub(crate) struct Arguments {
    /// How long.
    pub(crate) minutes: f64,
    /// Where the random choices begin.
    pub(crate) seed: u64,
    /// What is printed at the end.
    pub(crate) output: Output,
    /// Where to write the report as well.
    pub(crate) json: Option<PathBuf>,
}

/// What is printed at the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Some lines for people.
    Text,
    /// One JSON object.
    Json,
}

impl Arguments {
    /// Understands `--minutes N`, `--seed S`, `-o text|json` and `--json FILE`.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self { minutes: 10.0, seed: 1, output: Output::Text, json: None };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
            match word.as_str() {
                "--minutes" => arguments.minutes = minutes(&value()?)?,
                "--seed" => {
                    let seed = value()?;
                    arguments.seed = seed.parse().map_err(|_| format!("--seed {seed} is not a number"))?;
                }
                "-o" => {
                    arguments.output = match value()?.as_str() {
                        "text" => Output::Text,
                        "json" => Output::Json,
                        other => return Err(format!("-o {other} is not text or json")),
                    }
                }
                "--json" => arguments.json = Some(value()?.into()),
                _ => {
                    return Err(format!(
                        "{word} is not an option; there are --minutes, --seed, -o and --json"
                    ));
                }
            }
        }
        Ok(arguments)
    }
}

fn minutes(word: &str) -> Result<f64, String> {
    match word.parse() {
        Ok(minutes) if (0.1..=10_000.0).contains(&minutes) => Ok(minutes),
        _ => Err(format!("--minutes {word} is not between 0.1 and 10000")),
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
        let all = Arguments { minutes: 0.5, seed: 7, output: Output::Json, json: Some("x.json".into()) };
        assert_eq!(parse("--minutes 0.5 --seed 7 -o json --json x.json").unwrap(), all);
        assert!(parse("--minutes 0").unwrap_err().contains("between"));
        assert!(parse("--seed").unwrap_err().contains("wants a value"));
        assert!(parse("--fast").unwrap_err().contains("--fast"));
    }
}
