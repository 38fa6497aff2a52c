//! The log: to stderr, in colour for a terminal, plain lines for the journal. Owns the filter.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Begins to log.
pub(crate) fn start(filter: Option<&str>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let text = filter.unwrap_or("info");
    let filter = EnvFilter::try_new(text).map_err(|error| {
        format!(
            "log: {text:?} is not a filter ({error}); write info, debug, or one such as indexer::watch=debug"
        )
    })?;
    let terminal = std::io::stderr().is_terminal();
    let log =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).with_target(false);
    // The journal has a clock of its own.
    if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().try_init() } else { log.try_init() }
}
