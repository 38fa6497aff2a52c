//! How a migration tool moves a VM: plan, begin, follow, and call off if it takes too long.
//!
//! ```sh
//! cargo run --example migrate -- vm1 tls://host-2.example:7373 60
//! ```
//!
//! The last argument is for how many seconds it may take.

use std::{env, process::ExitCode, time::Duration};

use migrate_client::{
    Client, ClientError, ClientOptions, HostUrl, Token,
    memdex_wire::migration::{Migration, MigrationRequest, OnNoConverge, Outcome},
    printable,
};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [vm, to, seconds] = arguments.as_slice() else {
        eprintln!("usage: migrate VM URL SECONDS");
        return ExitCode::from(2);
    };
    let Ok(seconds) = seconds.parse() else {
        eprintln!("{seconds} is no number of seconds");
        return ExitCode::from(2);
    };
    match migrate(vm, to, Duration::from_secs(seconds)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the VM runs at the destination now.
async fn migrate(vm: &str, to: &str, limit: Duration) -> Result<bool, ClientError> {
    let here = match env::var("MEMDEX_HOST") {
        Ok(text) => text.parse().expect("MEMDEX_HOST is the address of a host"),
        Err(_) => HostUrl::default(),
    };
    // A Unix socket needs no token.
    let token = if here.socket_path().is_some() { None } else { Token::from_environment()? };
    let here = Client::new(here, ClientOptions { token, ..ClientOptions::default() })?;

    // All settings have defaults; these are a guest's that must not stand still for long.
    let request = MigrationRequest {
        downtime_ms: Some(100),
        on_no_converge: OnNoConverge::Throttle,
        ..MigrationRequest::new(vm, to)
    };

    // Nothing moves yet: what would it cost, and can it work at all?
    let plan = here.plan(&request).await?;
    println!(
        "{} pages new, {} already there, {} zero: {} bytes on the wire in about {} ms",
        plan.pages.missing, plan.pages.matched, plan.pages.zero, plan.wire_bytes, plan.expected_ms
    );
    for check in plan.checks.iter().filter(|check| !check.ok) {
        eprintln!("{}: {}", printable(&check.name), printable(&check.detail));
    }
    if !plan.possible {
        return Ok(false);
    }

    // From here on it goes on at the host, whatever becomes of this program: keep the id.
    let begun = here.migrate(&request).await?;
    println!("migration {}", printable(&begun.id));
    let ended = match tokio::time::timeout(limit, here.follow_migration(&begun.id, show)).await {
        Ok(ended) => ended?,
        Err(_) => {
            match here.abort_migration(&begun.id).await {
                Ok(_) => println!("that takes too long: it is called off"),
                // The destination is about to run the guest: the end is near.
                Err(error) if error.is_conflict() => println!("too late to call it off: {error}"),
                Err(error) => return Err(error),
            }
            here.follow_migration(&begun.id, show).await?
        }
    };
    if ended.outcome == Some(Outcome::Completed) {
        println!(
            "done in {} ms, the guest stood still for {:.1} ms; {} of {} bytes crossed the wire",
            ended.total_ms, ended.blackout_ms, ended.bytes.wire, ended.bytes.total
        );
        return Ok(true);
    }
    eprintln!("{}", printable(ended.reason.as_deref().unwrap_or("the host does not say why")));
    Ok(false)
}

/// Called five times a second, with the newest state each time.
fn show(state: &Migration) {
    println!(
        "{}: round {}, {} bytes remaining at {} bytes/s",
        state.phase.name(),
        state.rounds,
        state.progress.remaining_bytes,
        state.progress.rate
    );
}
