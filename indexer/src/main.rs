//! memdexd: configuration → log → host → listeners → serve → stop.
//!
//! Owns the life of the process: what it does in which order, signals, exit codes. Everything else is the library's.
#![forbid(unsafe_code)]

mod abilities;
mod cli;
mod log;

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::Parser;
use indexer::{
    api::{self, ApiState},
    config::Config,
    host::{self, Detached, Host, HostOptions},
    listen::{AccessToken, Listener, Server, token_file},
    map::MapFolder,
    migrate::{MigrationOptions, Migrations, guard},
    peer::Peers,
    vm::filter::NameFilter,
    watch::{ebpf::HookOptions, inject::apart, tracker::TrackerOptions, userfault::AttachError},
};
use migrate_client::Token;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Time that requests under way have to end once a stop is asked for. With what follows it stays below five seconds.
const FINISH: Duration = Duration::from_millis(2500);
/// Time to let go of the VMs.
const LET_GO: Duration = Duration::from_millis(1500);
/// The same after a second signal.
const AT_ONCE: Duration = Duration::from_millis(400);

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    indexer::heap::one_for_all();
    if std::env::args_os().nth(1).is_some_and(|role| role == guard::ROLE) {
        // What the daemon was told to log counts for its guards too; without it the default does.
        let _ = log::start(None);
        return guard::main();
    }
    if std::env::args_os().nth(1).is_some_and(|role| role == apart::ROLE) {
        let _ = log::start(None);
        return apart::main(std::env::args().skip(2));
    }
    apart::from_now_on();
    let cli = cli::Cli::parse();
    let (hook_debug, only_detach) = (cli.hook_debug, cli.detach);
    let config = match Config::load(cli.config.clone().as_deref(), cli.overrides()) {
        Ok(config) => config,
        // The log is not set up yet: its filter is in the configuration.
        Err(error) => return refuse(&error, 2),
    };
    if let Err(error) = log::start(config.log.as_deref()) {
        return refuse(&*error, 2);
    }
    raise_file_limit();
    if only_detach {
        return detach(&config);
    }
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("memdex-http").build() {
            Ok(runtime) => runtime,
            Err(error) => return refuse(&error, 1),
        };
    let result = runtime.block_on(run(config, hook_debug));
    // Threads that still copy or hash for a request that nobody waits for are not waited for either.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes out of the VMMs what an earlier daemon left there.
fn detach(config: &Config) -> ExitCode {
    let filter = match NameFilter::new(&config.include, &config.exclude) {
        Ok(filter) => filter,
        Err(error) => return refuse(&error, 2),
    };
    let mut code = ExitCode::SUCCESS;
    for Detached { id, name, outcome } in host::detach(&filter, &MapFolder::new(config.maps())) {
        match outcome {
            Ok(0) => println!("{id} {name}: there was nothing"),
            Ok(_) => println!("{id} {name}: detached"),
            Err(AttachError::Claimed) => {
                eprintln!(
                    "memdexd: {id} {name}: a memdexd watches this VM; stop that first, or leave the VM out (--exclude)"
                );
                code = ExitCode::FAILURE;
            }
            Err(AttachError::Gone) => {}
            Err(error) => {
                eprintln!("memdexd: {id} {name}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn refuse(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("memdexd: {error}");
    ExitCode::from(code)
}

async fn run(config: Config, hook_debug: bool) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    // Before anything is attached to a VM: a signal must always end in an orderly stop.
    let started = Arc::new(OnceLock::new());
    let signals = stop_on_signals(stop.clone(), Arc::clone(&started))?;
    let token = if config.wants_token() {
        Some(AccessToken::load_or_create(&token_file())?)
    } else {
        // Peers may want it all the same. Without one only Unix sockets can be asked.
        token_file().exists().then(|| AccessToken::load(&token_file())).transpose()?
    };
    let ours = token.as_ref().map(|token| Token::new(token.expose())).transpose()?;
    let peers =
        Arc::new(Peers::new(config.peers.clone(), ours, config.tls.ca.clone(), config.peer_picture_bytes));

    // Sockets come first: whoever finds another daemon serving must not have touched a VM.
    let mut listeners = Vec::new();
    for url in &config.listen {
        listeners.push(Listener::bind(url, &config.tls).await?);
    }
    abilities::report();
    warn_of_disk(&MapFolder::new(config.maps()));
    let options = options(&config, hook_debug)?;
    let mut starting = tokio::task::spawn_blocking(|| Host::start(options));
    let host = tokio::select! {
        host = &mut starting => host??,
        () = stop.cancelled() => {
            // Loading hooks can take a while and cannot be cut short; no VM has been touched before it is done.
            if let Ok(host) = tokio::time::timeout(FINISH + LET_GO, starting).await {
                let host = host??;
                tokio::task::spawn_blocking(move || host.stop()).await?;
            }
            return Ok(());
        }
    };

    let _ = started.set(host.clone());
    let migrations =
        Migrations::new(host.clone(), Arc::clone(&peers), &migration_options(&config), stop.clone());
    // Before anybody can ask: who asks about a migration must get the answer that was decided.
    migrations.recover();
    peers.follow(&host, &stop);
    let state = ApiState::new(host.clone(), peers, migrations.clone(), token, stop.clone());
    let counters = state.figures();
    let (app, _) = api::router(state);
    let server = Server::new(app, Arc::clone(&counters), stop.clone());
    for listener in listeners {
        server.serve(listener);
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "memdexd is ready");
    indexer::program::let_go_of_code();

    stop.cancelled().await;
    // Migrations are called off, and the guests put back, while requests end.
    tokio::join!(migrations.finish(FINISH), server.finish(FINISH));
    let letting_go = tokio::task::spawn_blocking(move || host.stop());
    if tokio::time::timeout(LET_GO, letting_go).await.is_err() {
        tracing::warn!("some VMs could not be let go in time; the next memdexd goes on with them");
    }
    // Whatever was not let go in time: the process must not end while it has a thread of a VMM stopped.
    std::mem::forget(indexer::watch::inject::hold_off());
    tracing::info!("memdexd has stopped");
    signals.abort();
    Ok(())
}

/// A map changes with every page that a guest writes.
fn warn_of_disk(maps: &MapFolder) {
    if maps.in_memory() == Some(false) {
        tracing::warn!(
            folder = %maps.path().display(),
            "the maps of the VMs are not on a tmpfs: what changes in them will be written to a disk. Put the Unix socket on a tmpfs such as /run"
        );
    }
}

fn options(config: &Config, hook_debug: bool) -> Result<HostOptions, Failure> {
    Ok(HostOptions {
        hash_threads: Some(config.hash_threads),
        filter: NameFilter::new(&config.include, &config.exclude)?,
        tracker: TrackerOptions {
            tick: config.tick,
            settle: config.settle,
            audit_share: config.audit_percent / 100.0,
            guest_budget_ppm: (config.guest_budget * 1e4).round() as u32,
            write_protect: config.witnesses.write_protect,
            ..TrackerOptions::default()
        },
        hooks: HookOptions { debug: hook_debug, left_out: !config.witnesses.ebpf },
        keep_bytes: config.migration.keep_bytes,
        maps: Some(MapFolder::new(config.maps())),
        ..HostOptions::default()
    })
}

fn migration_options(config: &Config) -> MigrationOptions {
    MigrationOptions {
        at_once: config.migration.at_once,
        max_bandwidth: config.migration.max_bandwidth,
        journal: config.journal(),
    }
}

/// The first SIGTERM or SIGINT asks for a stop, the second one ends the process at once.
fn stop_on_signals(
    stop: CancellationToken,
    started: Arc<OnceLock<Host>>,
) -> Result<tokio::task::JoinHandle<()>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                tracing::warn!("a second signal: ending at once");
                // In order, if that takes no time: it is faster than what the kernel has to do otherwise.
                if let Some(host) = started.get().cloned() {
                    let stopping = tokio::task::spawn_blocking(move || host.stop());
                    let _ = tokio::time::timeout(AT_ONCE, stopping).await;
                }
                std::mem::forget(indexer::watch::inject::hold_off());
                std::process::exit(130);
            }
            tracing::info!("stopping; a second signal ends memdexd at once");
            stop.cancel();
        }
    }))
}

/// Connections are files: takes as many as the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
