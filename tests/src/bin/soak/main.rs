//! `cargo xtask soak`: real guests that write, swell, shrink, come and go, daemons that end and begin, and a judge that reads every
//! page behind their backs, for as long as one likes.
//!
//! Owns the order: a daemon, some [keepers](keeper) with a guest each, restarts in between, a line of progress now and then, a
//! [report](tally) at the end. What is done comes from the seed, so that a run can be had again; when it is done does not. Nothing is
//! left behind however it ends.

mod arguments;
mod guests;
mod judge;
mod keeper;
mod page_map;
mod random;
mod tally;
mod world;

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    time::{Duration, Instant},
};

use arguments::{Arguments, Output};
use memdex_tests::Scratch;
use random::Random;
use world::World;

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Time from one restart of the daemon to the next, in seconds.
const RESTART: std::ops::Range<u64> = 8..30;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::from(2);
        }
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("soak: memdexd needs root: run `cargo xtask soak` as root");
        return ExitCode::FAILURE;
    }
    eprintln!(
        "soak: {} minutes with seed {}; again with: cargo xtask soak --minutes {} --seed {}",
        arguments.minutes, arguments.seed, arguments.minutes, arguments.seed
    );
    // The harness panics where a test would fail. Here that ends the run, after the clean-up that unwinding does.
    let report = panic::catch_unwind(AssertUnwindSafe(|| run(&arguments)));
    let Ok((report, interrupted)) = report else { return ExitCode::FAILURE };
    match &arguments.output {
        Output::Text => println!("{report}"),
        Output::Json => println!("{}", report.json()),
    }
    if let Some(file) = &arguments.json
        && let Err(error) = std::fs::write(file, format!("{}\n", report.json()))
    {
        eprintln!("soak: {} can't be written: {error}", file.display());
        return ExitCode::FAILURE;
    }
    match (report.passed(), interrupted) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(130),
        (true, false) => ExitCode::SUCCESS,
    }
}

/// Everything from the first guest to the last. Returns the report, and whether somebody did not want to wait for the end.
fn run(arguments: &Arguments) -> (tally::Report, bool) {
    let scratch = Scratch::new("soak");
    let mut random = Random::new(arguments.seed);
    let world = World::new(&scratch, arguments);
    std::thread::scope(|scope| {
        for kind in guests::Kind::ALL {
            let (world, random) = (&world, random.branch());
            scope.spawn(move || {
                if let Err(panic) =
                    panic::catch_unwind(AssertUnwindSafe(|| keeper::keep(world, kind, random)))
                {
                    world.fail(&format!("the keeper of {kind:?} guests gave up: {}", words(&*panic)));
                }
            });
        }
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| watch(&world, &mut random)));
        if let Err(panic) = outcome {
            world.fail(&format!("the daemon: {}", words(&*panic)));
        }
    });
    let report = world.report(arguments);
    if !report.passed() {
        world.keep_log(arguments.seed);
    }
    (report, world.interrupted())
}

/// Says how it goes, and lets the daemon end and begin. Children die with the thread that started them, so this is the main thread.
fn watch(world: &World<'_>, random: &mut Random) {
    let mut told = Instant::now();
    let mut restarted = Instant::now();
    let mut pause = Duration::from_secs(random.between(RESTART));
    while !world.over() {
        world.sleep(Duration::from_millis(100));
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("soak: {}", world.progress());
        }
        if restarted.elapsed() >= pause {
            world.restart_daemon(random.chance(50));
            restarted = Instant::now();
            pause = Duration::from_secs(random.between(RESTART));
        }
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("the harness panicked").to_owned()
}
