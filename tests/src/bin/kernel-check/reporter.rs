//! The report as it is written. A check that panics has failed, and the next one runs.

use std::{
    fs::File,
    io,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use memdex_tests::kernel_matrix::report::Line;

pub(crate) struct Reporter {
    port: File,
    /// What the last panic said.
    last_words: Arc<Mutex<String>>,
}

impl Reporter {
    pub(crate) fn open(port: &Path) -> io::Result<Self> {
        let port = File::options().write(true).open(port)?;
        let last_words = Arc::new(Mutex::new(String::new()));
        let words = Arc::clone(&last_words);
        panic::set_hook(Box::new(move |info| {
            eprintln!("{info}");
            *words.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
        }));
        Ok(Self { port, last_words })
    }

    pub(crate) fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.say(&Line::Fact { name: name.to_owned(), value: value.into() });
    }

    /// Runs a check; what it returns in the end, or the reason why it failed, is reported.
    pub(crate) fn check(&mut self, check: &str, run: impl FnOnce() -> Result<String, String>) {
        self.prepare(check, || run().map(|detail| ((), detail)));
    }

    /// The same for a check that others build on.
    pub(crate) fn prepare<T>(
        &mut self,
        check: &str,
        run: impl FnOnce() -> Result<(T, String), String>,
    ) -> Option<T> {
        eprintln!("=== {check}");
        self.say(&Line::Begin { check: check.to_owned() });
        let begun = Instant::now();
        let outcome = panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            Err(self.last_words.lock().unwrap_or_else(PoisonError::into_inner).replace('\n', " "))
        });
        let (value, passed, detail) = match outcome {
            Ok((value, detail)) => (Some(value), true, detail),
            Err(reason) => (None, false, reason),
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.say(&Line::Check { check: check.to_owned(), passed, detail, seconds });
        value
    }

    pub(crate) fn end(&mut self) {
        self.say(&Line::End);
    }

    /// Nobody is there to be told that the port is gone.
    fn say(&mut self, line: &Line) {
        if let Err(error) = line.write(&mut self.port) {
            eprintln!("kernel-check: the report can't be written: {error}");
        }
    }
}
