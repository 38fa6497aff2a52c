//! `cargo xtask demo`: two hosts on this machine, real guests, and what memdex does for them.
//!
//! Owns the order of the scenes, and that nothing is left behind however it ends. Every figure that is shown comes from
//! the run. What is shown as true was checked by other means than memdex: see [`truth`].

mod arguments;
mod figures;
mod guest;
mod hosts;
mod leftovers;
mod metrics;
mod page_map;
mod picture;
mod scenes;
mod stage;
mod summary;
mod truth;
mod watch;

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use arguments::Arguments;
use hosts::World;
use stage::{Failure, Stage};
use summary::Summary;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::from(2);
        }
    };
    let mut stage = match Stage::open() {
        Ok(stage) => stage,
        Err(error) => {
            eprintln!("demo: Ctrl-C can't be caught, so the guests could not be cleaned up: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut summary = Summary::new(&arguments);
    let outcome = perform(&arguments, &mut stage, &mut summary);
    stage.curtain();
    let code = match outcome {
        Ok(()) => summary.applause(&mut stage),
        Err(Failure::Interrupted) => {
            stage.say("Interrupted. The guests are ended, the daemons stopped, the files removed.");
            130
        }
        Err(Failure::Failed(why)) => {
            stage.bad(&format!("The demo can't go on: {why}"));
            1
        }
    };
    if let Some(file) = &arguments.json
        && let Err(error) = summary.write(file)
    {
        eprintln!("demo: {} can't be written: {error}", file.display());
        return ExitCode::FAILURE;
    }
    ExitCode::from(code)
}

/// All scenes. The harness panics where a test would fail; here that is the end of the demo, after the clean-up that
/// unwinding does.
fn perform(arguments: &Arguments, stage: &mut Stage, summary: &mut Summary) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::Failed("memdexd needs root: run `cargo xtask demo` as root".to_owned()));
    }
    let words = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&words);
    panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text =
            payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref().copied());
        *kept.lock().unwrap_or_else(PoisonError::into_inner) =
            text.unwrap_or("the harness panicked").to_owned();
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        leftovers::remove();
        let mut world = World::new(arguments);
        scenes::play(&mut world, stage, summary)
    }));
    drop(panic::take_hook());
    outcome.unwrap_or_else(|_| {
        Err(Failure::Failed(words.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    })
}
