//! Arguments, and what every command has in common: connecting, leaving, exit codes.
//!
//! One file per command does the rest. Nothing here knows what a command prints.

mod abort;
mod diff;
mod migrate;
mod migrations;
mod pages;
mod plan;
mod sync;
mod top;
mod values;
mod verify;
mod vms;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use migrate_client::{Client, ClientError, ClientOptions, HostUrl, Timeouts, Token};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    output::{Format, Output},
    progress::{self, Progress},
};

/// Knows what every guest page on a host holds, so that moving a VM sends only what the other side lacks.
#[derive(Debug, Parser)]
#[command(name = "memdex", version, after_help = EXAMPLES, after_long_help = LONG_EXAMPLES, subcommand_required = true)]
struct Arguments {
    /// The host to ask: unix:/path, tcp://host:port (this machine only) or tls://host:port.
    #[arg(long, global = true, value_name = "URL", env = "MEMDEX_HOST", default_value_t = HostUrl::default())]
    host: HostUrl,
    /// How to print data on stdout: a table for people, json as one document, jsonl as one object a line.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How to show progress on stderr; auto draws a bar if stderr is a terminal.
    #[arg(long, global = true, value_enum, default_value_t = progress::Mode::Auto, value_name = "HOW")]
    progress: progress::Mode,
    /// PEM file of the authorities to trust for tls://, instead of the system's.
    #[arg(long, global = true, value_name = "FILE", env = "MEMDEX_CA")]
    ca: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  memdex vms                                    which VMs are indexed here, and how well
  memdex diff vm1 --to tls://host-2:7373        what host-2 lacks of vm1
  memdex migrate vm1 --to tls://host-2:7373     move vm1 there while it runs
  memdex --help                                 more examples, exit codes, environment";

const LONG_EXAMPLES: &str = "\
A VM is named by id, name or pid. The daemon of this machine is asked unless --host or $MEMDEX_HOST says otherwise.

Examples:
  memdex vms
      Which VMs are indexed here, and how much of each is known, zero, absent or stale.
  memdex top
      The same as a live view; q leaves it.
  memdex sync vm1 --timeout 1m && memdex diff vm1 --to tls://host-2.example:7373
      Wait until every page of vm1 has been read, then see what host-2 lacks of it.
  memdex plan --to tls://host-2.example:7373 --to tls://host-3.example:7373
      What it would cost to move each VM of this host to either host; nothing moves.
  memdex migrate vm1 --to tls://host-2.example:7373 --dry-run
      Whether vm1 could move to host-2 now, with every check; without --dry-run it moves while it runs.
  memdex migrate vm1 --to host-2 --max-bandwidth 125M --downtime 100ms --on-no-converge throttle
      At most 1 Gbit/s, the guest stands still for at most 100 ms and is slowed down if it writes too fast.
  memdex migrations
      What moves now, and what has moved lately; `memdex abort ID` calls one off.
  memdex --host tls://host-2.example:7373 --ca ca.pem vms -o json
      Ask another host, as one JSON document. The token comes from the file in $MEMDEX_TOKEN_FILE.
  memdex pages vm1 -o jsonl | jq -r 'select(.state == \"current\") | .fingerprint' | sort -u | wc -l
      How many different pages vm1 has.
  memdex verify vm1 || echo 'the map is wrong'
      Have the daemon read everything again and compare.

Exit codes:
  0 done · 1 failed · 2 usage · 3 not found · 4 host unreachable · 5 conflict · 130 interrupted

Environment:
  MEMDEX_HOST        host to ask
  MEMDEX_TOKEN_FILE  file of the bearer token for tcp:// and tls://, by default /etc/memdex/token
  MEMDEX_CA          file of authorities to trust for tls://
  MEMDEX_LOG         what to log on stderr, for example debug";

#[derive(Debug, Subcommand)]
enum Command {
    /// The VMs of the host, and how well each is known.
    #[command(after_help = "Examples:
  memdex vms
  memdex vms -o json | jq '.[] | {name, stale: .pages.stale, advisory_reasons}'

Columns:
  TRACKING  exact: every write is seen; advisory: some may not be, for the
            reason that is named, and all is read again now and then
  CURRENT   pages whose content is known, and not written since
  ZERO      pages that hold zeros, and ABSENT ones that hold nothing
  STALE     pages written since they were read, or not read yet

-o json has more: each region, witnesses, what the guest pays.")]
    Vms,
    /// The page map: what each page of a VM holds.
    Pages(pages::Arguments),
    /// Return when every page is current, and print the generation.
    Sync(sync::Arguments),
    /// What another host lacks of a VM.
    Diff(diff::Arguments),
    /// Re-read and re-hash every current page; exit 1 if one differs.
    Verify(verify::Arguments),
    /// Move a running VM to another host.
    Migrate(migrate::Arguments),
    /// What it would cost to move each VM to each host; nothing moves.
    Plan(plan::Arguments),
    /// The migrations of the host, or one of them with its log.
    Migrations(migrations::Arguments),
    /// Call a migration off; the VM stays where it is.
    Abort(abort::Arguments),
    /// Live view of all VMs.
    Top(top::Arguments),
}

/// What a command is given.
struct Context {
    client: Client,
    output: Output,
    progress: progress::Mode,
}

impl Context {
    fn progress(&self, command: &'static str, vm: &str) -> Progress {
        Progress::new(self.progress, command, vm)
    }
}

/// Says that somebody wants the program to end. Whoever leaves it open has to end the program itself; once it is
/// closed, a signal ends the program wherever it is.
type Signals = mpsc::Receiver<()>;

/// Why a command does not exit with 0.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    /// The work was done, and its result is bad news.
    #[error("{0}")]
    Failed(String),
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Usage(String),
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) if error.is_usage() => 2,
            Self::Client(error) if error.is_not_found() => 3,
            Self::Client(error) if error.is_unreachable() => 4,
            Self::Client(error) if error.is_conflict() => 5,
            Self::Client(_) | Self::Output(_) | Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Interrupted => 130,
        }
    }

    /// Whoever read our output has seen enough: `memdex pages vm1 | head`.
    fn is_quiet(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Runs the command line; the exit code is the contract's.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("MEMDEX_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    }
    let result = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let result = runtime.block_on(until_interrupted(arguments));
            // A write to a pipe that nobody empties may still hang in there.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::Failed(format!("no threads can be started: {error}"))),
    };
    top::restore_terminal();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_quiet() => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "memdex: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// The command runs beside us, so that a signal ends it wherever it is; but for a migration, which is called off first.
async fn until_interrupted(arguments: Arguments) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (sender, mut signals) = mpsc::channel(8);
    if !matches!(arguments.command, Command::Migrate(_)) {
        signals.close();
    }
    let mut command = tokio::spawn(run(arguments, signals));
    loop {
        tokio::select! {
            result = &mut command => {
                return result.unwrap_or_else(|error| Err(Failure::Failed(format!("memdex is broken: {error}"))));
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        if sender.try_send(()).is_err() {
            return Err(Failure::Interrupted);
        }
    }
}

async fn run(arguments: Arguments, signals: Signals) -> Result<(), Failure> {
    // A Unix socket is guarded by its mode: there the token is not even read.
    let token = if arguments.host.socket_path().is_some() { None } else { Token::from_environment()? };
    let options = ClientOptions { token, ca: arguments.ca, timeouts: Timeouts::default() };
    let context = Context {
        client: Client::new(arguments.host, options)?,
        output: Output::new(arguments.output),
        progress: arguments.progress,
    };
    match arguments.command {
        Command::Vms => vms::run(context).await,
        Command::Pages(arguments) => pages::run(context, arguments).await,
        Command::Sync(arguments) => sync::run(context, arguments).await,
        Command::Diff(arguments) => diff::run(context, arguments).await,
        Command::Verify(arguments) => verify::run(context, arguments).await,
        Command::Migrate(arguments) => migrate::run(context, arguments, signals).await,
        Command::Plan(arguments) => plan::run(context, arguments).await,
        Command::Migrations(arguments) => migrations::run(context, arguments).await,
        Command::Abort(arguments) => abort::run(context, arguments).await,
        Command::Top(arguments) => top::run(context, arguments).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
