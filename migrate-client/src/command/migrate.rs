//! `memdex migrate`: moves a running VM to another host.
//!
//! Owns the options and the order: cost, start, the end. How it is driven is in [`drive`], what is printed before in
//! [`cost`] and after in [`report`].

pub(super) mod cost;
mod drive;
pub(super) mod report;

use std::time::Duration;

use clap::{ValueEnum, builder::NonEmptyStringValueParser};
use memdex_wire::migration::{AtSource, Compression, Migration, MigrationRequest, OnNoConverge};

use self::drive::Driver;
use super::{Context, Failure, Signals, values};
use crate::{
    output::{Format, told},
    progress::{migration::MigrationProgress, say},
};

/// Moves a running VM to another host. Only the content that the other host lacks is sent, in rounds, while the guest
/// runs; then it is stopped for a moment (the blackout), and goes on there.
///
/// A QEMU of the same machine must wait at the destination, started with -incoming defer. Ctrl-C calls the migration
/// off: the guest goes on here as if nothing had been. A second Ctrl-C leaves at once, and the migration goes on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:
  memdex migrate vm1 --to tls://host-2.example:7373 --dry-run     can it move? what would it cost?
  memdex migrate vm1 --to tls://host-2.example:7373
  memdex migrate vm1 --to host-2 --max-bandwidth 125M --downtime 100ms    at most 1 Gbit/s
  memdex migrate vm1 --to host-2 --on-no-converge throttle        for a guest that writes very fast
  memdex migrate vm1 --to host-2 -o json | jq '{outcome, reason, blackout_ms, wire: .bytes.wire}'
  memdex migrate vm1 --to host-2 --progress json 2>progress.jsonl",
    after_long_help = "Examples:
  memdex migrate vm1 --to tls://host-2.example:7373 --dry-run
      Look whether it can move now, with every check, and what that would cost. Nothing moves; exit 1 if it cannot.
  memdex migrate vm1 --to tls://host-2.example:7373
      Move it. At a terminal a bar shows iteration, remaining memory, speed and dirty rate.
  memdex migrate vm1 --to host-2 --max-bandwidth 125M --downtime 100ms
      At most 1 Gbit/s on the wire, and the guest stands still for at most 100 ms. host-2 is a peer that memdexd knows.
  memdex migrate vm1 --to host-2 --compression zstd
      Fewest bytes, also where more bytes would take less time: for a link that is paid for or shared.
  memdex migrate vm1 --to host-2 --on-no-converge throttle
      If the guest writes faster than memory can be sent, slow it down until it fits.
  memdex migrate vm1 --to host-2 --dest-vm vm1-new --source pause
      The VM that waits there has another name; the one here stays, paused.
  memdex migrate vm1 --to host-2 -o json | jq '{outcome, reason, blackout_ms, wire: .bytes.wire}'
      One JSON document at the end, however it ends.
  id=$(memdex migrate vm1 --to host-2 --detach) && memdex migrations $id
      Begin it and leave; look later. `memdex abort $id` calls it off.

Exit codes:
  0 the guest runs at the destination · 1 a check failed, or it was aborted or failed · 5 it is being migrated already ·
  130 interrupted: called off, or left with a second Ctrl-C · the others as in memdex --help"
)]
pub(super) struct Arguments {
    /// Id, name or pid of the VM.
    vm: String,
    /// The other host, as seen from the one that is asked: tls://host:port, tcp://host:port or unix:/path, or the name
    /// of a peer that its daemon knows.
    #[arg(long, value_name = "URL", value_parser = values::host)]
    to: String,
    /// Id, name or pid of the VM that waits there (-incoming defer); by default the name of VM.
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    dest_vm: Option<String>,
    /// Most bytes a second on the wire; K, M and G are thousands: 125M is 1 Gbit/s. At least 100K; by default no limit.
    #[arg(long, value_name = "BYTES/S", value_parser = values::bandwidth)]
    max_bandwidth: Option<u64>,
    /// Whether pages are compressed before they are sent.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Packing::Auto)]
    compression: Packing,
    /// For how long the guest may stand still at the end, such as 50ms or 1s; by default 50ms.
    #[arg(long, value_name = "TIME", value_parser = values::downtime)]
    downtime: Option<Duration>,
    /// What to do if the guest writes faster than memory can be sent.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = TooFast::Abort)]
    on_no_converge: TooFast,
    /// What becomes of the VM here once it runs there.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Source::Quit)]
    source: Source,
    /// QMP socket of the VM, if the one on its command line is not to be used.
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    qmp: Option<String>,
    /// QMP socket of the VM that waits at the destination, as seen from there.
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    dest_qmp: Option<String>,
    /// Look whether it can move and what that would cost; nothing moves. Exit 1 if it cannot.
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    /// Begin it, print its id and leave; with -o json all that is known of it.
    #[arg(long)]
    detach: bool,
}

/// [`OnNoConverge`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TooFast {
    /// Call the migration off and say why.
    Abort,
    /// Slow the guest down, more and more, until it fits.
    Throttle,
    /// Stop the guest and send the rest, however long that takes.
    Stop,
}

/// [`Compression`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Packing {
    /// As it is faster, which is measured all the time.
    Auto,
    /// Always, for fewest bytes: for a link that is paid for or shared.
    Zstd,
    /// Never, for least processor time.
    None,
}

/// [`AtSource`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Source {
    /// Its VMM ends.
    Quit,
    /// It stays, paused. Resuming it by hand would make the guest run twice.
    Pause,
}

impl Arguments {
    fn request(&self) -> MigrationRequest {
        MigrationRequest {
            dest_vm: self.dest_vm.clone(),
            max_bandwidth: self.max_bandwidth,
            compression: match self.compression {
                Packing::Auto => Compression::Auto,
                Packing::Zstd => Compression::Zstd,
                Packing::None => Compression::None,
            },
            downtime_ms: self.downtime.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            on_no_converge: match self.on_no_converge {
                TooFast::Abort => OnNoConverge::Abort,
                TooFast::Throttle => OnNoConverge::Throttle,
                TooFast::Stop => OnNoConverge::Stop,
            },
            at_source: match self.source {
                Source::Quit => AtSource::Quit,
                Source::Pause => AtSource::Pause,
            },
            qmp: self.qmp.clone(),
            dest_qmp: self.dest_qmp.clone(),
            ..MigrationRequest::new(&*self.vm, &*self.to)
        }
    }
}

pub(super) async fn run(
    mut context: Context,
    arguments: Arguments,
    mut signals: Signals,
) -> Result<(), Failure> {
    let request = arguments.request();
    if arguments.dry_run {
        // Nothing has to be called off.
        drop(signals);
        return cost::dry_run(context, &request).await;
    }
    let mut progress = MigrationProgress::new(context.progress, "migrate", &arguments.vm);
    if context.output.format() == Format::Table {
        tokio::select! {
            biased;
            Some(()) = signals.recv() => return Err(Failure::Interrupted),
            cost = cost::line(&context.client, &request) => if let Some(cost) = cost {
                progress.say(&cost);
            },
        }
    }
    // The driver ends with this block, and so does its hold on signals: what is printed after may hang in a pipe.
    let (ended, interrupted) = {
        let mut driver = Driver::new(&context.client, signals, &mut progress);
        let begun = driver.start(&request).await?;
        if arguments.detach && !driver.is_interrupted() {
            drop(progress);
            return detached(&mut context, &begun);
        }
        let ended = driver.follow(begun).await?;
        (ended, driver.is_interrupted())
    };
    progress.finish();
    report::print(&mut context.output, &ended)?;
    match report::failure(&ended) {
        Some(failure) if interrupted => {
            say(&failure.to_string());
            Err(Failure::Interrupted)
        }
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn detached(context: &mut Context, begun: &Migration) -> Result<(), Failure> {
    match context.output.format() {
        Format::Json | Format::Jsonl => context.output.document(begun)?,
        Format::Table => {
            let id = told(&begun.id);
            say(&format!(
                "{} is on its way: `memdex migrations {id}` shows how, `memdex abort {id}` calls it off",
                told(&begun.name)
            ));
            context.output.line(&id)?;
        }
    }
    Ok(context.output.flush()?)
}
