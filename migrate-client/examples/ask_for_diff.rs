//! How a migration tool decides where a VM goes: ask the daemon beside it what each candidate host lacks, and take the
//! one that lacks least.
//!
//! ```sh
//! cargo run --example ask_for_diff -- vm1 tls://host-2.example:7373 tls://host-3.example:7373
//! ```

use std::{env, process::ExitCode, time::Duration};

use migrate_client::{
    Client, ClientError, ClientOptions, HostUrl, Token, memdex_wire::vm::Tracking, printable,
};

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let Some(vm) = arguments.next() else {
        eprintln!("usage: ask_for_diff VM URL...");
        return ExitCode::from(2);
    };
    match cheapest(&vm, arguments.collect()).await {
        Ok(Some((host, bytes))) => {
            println!("{} goes to {host}: {bytes} bytes to send", printable(&vm));
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("none of the hosts can take {}", printable(&vm));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The host that lacks least of a VM, and how many bytes it lacks.
async fn cheapest(vm: &str, candidates: Vec<String>) -> Result<Option<(String, u64)>, ClientError> {
    let here = match env::var("MEMDEX_HOST") {
        Ok(text) => text.parse().expect("MEMDEX_HOST is the address of a host"),
        Err(_) => HostUrl::default(),
    };
    // A Unix socket needs no token.
    let token = if here.socket_path().is_some() { None } else { Token::from_environment()? };
    let here = Client::new(here, ClientOptions { token, ..ClientOptions::default() })?;

    // Names may change hands and need not be unique; an id names this VM for as long as it runs.
    let vm = here.vm(vm).await?;
    if vm.tracking == Tracking::Advisory {
        eprintln!(
            "every page will be hashed again at the final pause: {}",
            printable(&vm.advisory_reasons.join("; "))
        );
    }
    // Right after a VM was found most of its pages are not known yet. A sync makes the answers below exact.
    match here.sync(&vm.id, Duration::from_secs(30)).await {
        Ok(report) => {
            println!("all of its {} pages are known, generation {}", report.pages.total, report.generation);
        }
        Err(error) if error.is_retryable() => eprintln!("{error}; going on with what is known"),
        Err(error) => return Err(error),
    }

    let mut best: Option<(String, u64)> = None;
    for candidate in candidates {
        let diff = match here.diff(&vm.id, &candidate).await {
            Ok(diff) => diff,
            // The VM itself is gone: no other candidate will do better.
            Err(error) if error.is_not_found() => return Err(error),
            Err(error) => {
                eprintln!("{candidate} is left out: {error}");
                continue;
            }
        };
        println!(
            "{candidate}: {} pages new, {} already there, {} zero",
            diff.pages.missing, diff.pages.matched, diff.pages.zero
        );
        // What is stale may have to be sent as well.
        let bytes = diff.bytes.missing + diff.bytes.stale;
        if best.as_ref().is_none_or(|(_, least)| bytes < *least) {
            best = Some((candidate, bytes));
        }
    }
    Ok(best)
}
