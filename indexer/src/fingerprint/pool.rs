//! The threads that hash: the whole CPU budget of the daemon, shared by all VMs, at low priority.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::mpsc,
    thread,
};

/// How much lower than normal the hashing threads' priority is (see `nice(1)`).
const NICE: i32 = 10;

/// A bounded set of threads for hashing.
pub struct HashPool(rayon::ThreadPool);

impl HashPool {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("memdex-hash-{index}"))
            .start_handler(|_| {
                // Linux keeps the nice value for each thread. Failing to be modest is no reason not to work.
                let _ = rustix::process::setpriority_process(None, NICE);
            })
            .build()?;
        Ok(Self(pool))
    }

    /// Runs `work` on the pool and waits for it; parallel iterators inside use only the pool's threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }

    /// Starts `work` on the pool and goes on; parallel iterators inside use the pool's other threads.
    pub fn start<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Pending<R> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.0.spawn(move || {
            // Nobody may be waiting any more, then the result is of no use.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
        });
        Pending(receiver)
    }

    /// Number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }
}

impl fmt::Debug for HashPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashPool").field("threads", &self.threads()).finish()
    }
}

/// A result that the pool is working on.
#[derive(Debug)]
#[must_use]
pub struct Pending<R>(mpsc::Receiver<thread::Result<R>>);

impl<R> Pending<R> {
    /// Waits for the result. A panic of the work goes on here.
    ///
    /// # Panics
    /// If the work did, or the pool is gone.
    pub fn wait(self) -> R {
        let result =
            self.0.recv().expect("the pool lives as long as the daemon and answers everything it took");
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }
}
