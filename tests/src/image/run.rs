//! Runs a program to its end and turns failure into a sentence.

use std::io::ErrorKind;
use std::process::{Command, Stdio};

use super::error::ImageError;

/// Runs the command, returns its standard output. `what` begins the sentence if it fails.
pub(super) fn run(command: &mut Command, what: &str) -> Result<String, ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Programs' words are quoted in errors, so let them be in one language.
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            ImageError::NoProgram { program: program.clone() }
        } else {
            ImageError::Failed { what: what.to_owned(), reason: format!("{program}: {error}") }
        }
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    // debootstrap says what went wrong on standard output, apt on standard error.
    let reason = last_words(&errors).or_else(|| last_words(&text));
    let reason = reason.map_or_else(|| output.status.to_string(), |words| format!("{program}: {words}"));
    Err(ImageError::Failed { what: what.to_owned(), reason })
}

fn last_words(text: &str) -> Option<&str> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.clone().rfind(|line| line.starts_with("E:")).or_else(|| lines.next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_deed_and_the_programs_last_words() {
        let error = run(
            Command::new("sh").args(["-c", "echo first; echo E: no space; echo later; exit 3"]),
            "packing",
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "packing failed: sh: E: no space");
        let error = run(&mut Command::new("no-such-program-here"), "packing").unwrap_err();
        assert!(error.to_string().contains("cargo xtask setup"), "{error}");
    }
}
