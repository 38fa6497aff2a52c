//! Runs one of the hot functions, so that somebody can count what it executes: `cargo xtask instructions` does, with valgrind.
//!
//! Owns the frame around the measured work, and that everything is the same in each run.

mod random;

use std::{any::Any, hint::black_box, process::ExitCode};

use memdex_hot::{ALL, Work, find};

/// What is executed in here is counted, by the name of this function: the rest of the program is not.
#[inline(never)]
fn measured(work: Work) -> Box<dyn Any> {
    // Not the last thing that is done, or it would be jumped to and never come back here.
    black_box(black_box(work)())
}

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        // A line for each: name, operations in one go, what is one.
        for hot in ALL {
            println!("{}\t{}\t{}", hot.name, hot.operations, hot.operation);
        }
        return ExitCode::SUCCESS;
    };
    let Some(hot) = find(&name) else {
        eprintln!("memdex-hot: no function is called {name:?}; without arguments it lists them");
        return ExitCode::FAILURE;
    };
    random::check();
    indexer::heap::one_for_all();
    // What is done once in the life of a program (which instructions has the processor?) is done here.
    drop(hot.prepare()());
    let work = hot.prepare();
    let done = measured(work);
    println!("{}", vectors());
    drop(done);
    ExitCode::SUCCESS
}

/// The widest instructions that pages are hashed with, here and now: valgrind has no AVX-512.
fn vectors() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vl") {
        "AVX-512"
    } else if std::arch::is_x86_feature_detected!("avx2") {
        "AVX2"
    } else {
        "SSE"
    }
}
